"""What the commands print, and how they end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from catp.runtime.commands.console import console
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import write_file
from catp.runtime.system.optional_imports import optional_import
from catp.runtime.system.printable import in_json, one_line, printable

IMAGE = Path(__file__).parents[3] / "export" / "demo" / "images" / "scene-a.png"


def test_what_steers_a_terminal_is_spelled_out() -> None:
    assert printable("a\x1b[2J\x07\x9b\u202eb\nc\td") == "a\\x1b[2J\\x07\\x9b\\u202eb\nc\td"
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9"
    assert printable("naïve 图像 👩‍🚀 ‏עברית") == "naïve 图像 👩‍🚀 ‏עברית"
    assert one_line("a\nb\tc\r") == "a\\nb\\tc\\x0d"
    assert in_json('{"a": "\x9b"}') == '{"a": "\\u009b"}'


def test_the_console_prints_no_such_thing(capsys: pytest.CaptureFixture[str]) -> None:
    console.print("x\x1b[31my", soft_wrap=True)
    assert "\x1b[31m" not in capsys.readouterr().err


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "report.json"

    def fail(file: Path) -> None:
        file.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(CatpError, match="No space left"):
        write_file(path, fail)
    assert not any(tmp_path.iterdir())
    write_file(path, lambda file: file.write_text("old"))
    path.chmod(0o640)
    with pytest.raises(CatpError):
        write_file(path, fail)
    with pytest.raises(KeyboardInterrupt):
        write_file(path, lambda file: (_ for _ in ()).throw(KeyboardInterrupt))
    assert path.read_text() == "old"
    (tmp_path / "link").symlink_to(path)
    write_file(tmp_path / "link", lambda file: file.write_text("new"))
    assert path.read_text() == "new" and path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(UsageError, match="meanwhile"):
        write_file(path, lambda file: file.write_text("newer"), overwrite=False)
    assert path.read_text() == "new" and len(list(tmp_path.iterdir())) == 2
    write_file(Path("/dev/null"), lambda file: file.write_text("gone"))


@pytest.mark.parametrize("more", [[], ["--json"], ["--stream"]])
def test_a_full_standard_output_is_one_line(demo_bundle: Path, more: list[str]) -> None:
    code = "from catp.runtime.commands.run import app; app()"
    command = [sys.executable, "-c", code, str(demo_bundle), "--image", str(IMAGE), "--prompt", "a", *more]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == "error: standard output: can't be written (No space left on device)\n"


def test_why_a_library_can_not_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "broken_library.py").write_text("import another_that_is_missing")
    (tmp_path / "torn_library.py").write_text(
        "try:\n    raise KeyboardInterrupt\nexcept KeyboardInterrupt as error:\n"
        "    raise ImportError('initialization failed') from error"
    )
    assert optional_import("json")[0] is not None
    assert optional_import("no_such_library") == (None, "is not installed")
    assert optional_import("broken_library")[1].startswith("can't be imported (No module named 'another_that")
    with pytest.raises(KeyboardInterrupt):
        optional_import("torn_library")
