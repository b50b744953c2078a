"""The runtime's own wheel: what an installer checks of it, and what is in it."""

import base64
import csv
import hashlib
import io
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from documents import ROOT
from packaging.utils import parse_wheel_filename

from catp.export.packing.own_wheel import write_own_wheel


def test_its_record_is_its_content(tmp_path: Path) -> None:
    path = write_own_wheel(tmp_path)
    name, version, _, tags = parse_wheel_filename(path.name)
    assert (name, version.local, {str(tag) for tag in tags}) == ("catp-exporter", "runtime", {"py3-none-any"})
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        (record,) = (name for name in names if name.endswith("/RECORD"))
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
        assert [row[0] for row in rows] == names
        for name, digest, size in rows:
            if name != record:
                content = archive.read(name)
                wanted = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={wanted}", str(len(content)))
        metadata = HeaderParser().parsestr(archive.read(record.replace("RECORD", "METADATA")).decode())
        scripts = archive.read(record.replace("RECORD", "entry_points.txt")).decode()
    assert metadata["Version"] == str(version) and metadata["Requires-Python"] == ">=3.11"
    assert any(line.startswith("numpy") for line in metadata.get_all("Requires-Dist", []))
    assert "catp-run" in scripts and "catp-export" not in scripts


def test_it_has_the_runtime_and_nothing_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_own_wheel(tmp_path)) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "runtime").rglob("*") if path.suffix in (".py", ".html")]
    assert found == {f"catp/runtime/{path.relative_to(ROOT / 'runtime').as_posix()}" for path in files}


def test_it_is_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        contents.append(write_own_wheel(tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
