"""Files and folders: questions about them that every part asks, whatever they hold."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from pathlib import Path

from catp.runtime.errors import CatpError, UsageError
from catp.runtime.system.renames import rename_to_free


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


def write_file(path: Path, write: Callable[[Path], object], overwrite: bool = True) -> None:
    """Call `write` with the path of a file that takes this one's place once it is whole; what is no regular file, such
    as /dev/stdout, is written as it is.

    Args:
        overwrite: replace a file that is there by then.

    Raises:
        UsageError: there is one, and it must not be replaced.
        CatpError: it can't be written; what was there before still is.
    """
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            write(target)
            return
        temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
        try:
            write(temporary)
            if not overwrite:
                rename_to_free(temporary, target)
                return
            if target.exists():
                temporary.chmod(target.stat().st_mode)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except FileExistsError:
        raise UsageError(f"{path}: somebody else has written it meanwhile; give another name") from None
    except OSError as error:
        raise CatpError(f"{path}: can't be written ({error.strerror or error})") from None
