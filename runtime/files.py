"""Files and folders: questions about them that every part asks, whatever they hold."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from catp.runtime.errors import CatpError, UsageError


def is_dir(path: Path) -> bool:
    """Whether there is a folder of that name; a name that can't be one (too long, say) is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def sha256(path: Path) -> str:
    """Hex digest of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_file_output(option: str, path: Path | None) -> None:
    """Before hours of work rather than after: raises UsageError where no file can be written there."""
    if path is not None and (is_dir(path) or not is_dir(path.parent)):
        reason = "it is a folder" if is_dir(path) else f"there is no folder {path.parent}"
        raise UsageError(f"{option} {path}: {reason}; give a file to write")


def write_file(path: Path, write: Callable[[], object]) -> None:
    """Call `write`; raises CatpError where it can't."""
    try:
        write()
    except OSError as error:
        raise CatpError(f"{path}: can't be written ({error.strerror})") from None
