"""A wheel of this project's runtime alone, made of the files that run now: neither source nor network is needed."""

from __future__ import annotations

import base64
import configparser
import hashlib
import io
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import catp.runtime
from catp.runtime.errors import UsageError

NAME = "catp-exporter"
_PACKAGE = "catp.runtime"
_KEPT = ("Metadata-Version", "Name", "Summary", "License-Expression", "Requires-Python", "Provides-Extra")
_DATE = (1980, 1, 1, 0, 0, 0)
"""Date of every file: equal content is an equal wheel."""


def find_distribution() -> Distribution:
    """This project as it is installed.

    Raises:
        UsageError: it is not, so that nothing says what it requires.
    """
    try:
        return distribution(NAME)
    except PackageNotFoundError:
        raise UsageError(f"catp-pack: {NAME} is not installed here; pip install '.[pack]'") from None


def write_own_wheel(folder: Path) -> Path:
    """Write `catp.runtime` and its commands as a wheel; its version ends in +runtime, since it is not the whole.

    Format: https://packaging.python.org/en/latest/specifications/binary-distribution-format/
    """
    installed = find_distribution()
    version = f"{installed.version}+runtime"
    stem = f"{NAME.replace('-', '_')}-{version}"
    about = f"{stem}.dist-info"
    root = Path(catp.runtime.__file__).parent
    files = {
        f"catp/runtime/{path.relative_to(root).as_posix()}": path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    files[f"{about}/METADATA"] = _metadata(installed, version).encode()
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: catp-pack\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{about}/entry_points.txt"] = _entry_points(installed).encode()
    record = f"{about}/RECORD"
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[record] = "\n".join([*lines, f"{record},,", ""]).encode()
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def _metadata(installed: Distribution, version: str) -> str:
    """The installed metadata, of what a machine that installs it looks at: name, Python, requirements and extras."""
    # Not its file: an editable installation leaves a folder in the clone where that has another name.
    written = installed.metadata
    kept = [(name, value) for name in _KEPT for value in written.get_all(name, [])]
    lines = [f"{name}: {value}" for name, value in kept] + [f"Version: {version}"]
    lines += [f"Requires-Dist: {requirement}" for requirement in written.get_all("Requires-Dist", [])]
    return "\n".join(lines) + "\n"


def _entry_points(installed: Distribution) -> str:
    scripts = configparser.ConfigParser()
    scripts["console_scripts"] = {
        entry.name: entry.value
        for entry in installed.entry_points
        if entry.group == "console_scripts" and entry.value.startswith(f"{_PACKAGE}.")
    }
    text = io.StringIO()
    scripts.write(text)
    return text.getvalue()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
