"""Publishing a folder in one step: it appears whole under its name, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catp.runtime.errors import CatpError, UsageError
from catp.runtime.manifest import MANIFEST_NAME


@contextmanager
def published(output: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside `output` that is renamed to it on success and removed on failure.

    A process killed meanwhile leaves only the temporary folder (`.NAME.incomplete-PID`), which has no manifest and
    so never loads; the next export to the same place removes it.

    Raises:
        UsageError: `output` is taken, or is something that must not be replaced.
        CatpError: it can't be written (disk full, permissions).
    """
    output = output.absolute()
    _check_free(output, overwrite)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(output)
        folder = output.parent / f".{output.name}.incomplete-{os.getpid()}"
        folder.mkdir()
    except OSError as error:
        raise CatpError(f"output {output}: can't write there ({error.strerror})") from None
    try:
        yield folder
        _replace(folder, output)
    except OSError as error:
        raise CatpError(
            f"output {output}: writing failed ({error.strerror or error}); nothing was published"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_free(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageError(f"output {output}: it is a file; give a folder")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"output {output}: the folder is not empty; give another one, or --overwrite to replace it")
    if not (output / MANIFEST_NAME).is_file():
        raise UsageError(f"output {output}: it is not a bundle, so --overwrite does not replace it; give another one")


def _remove_leftovers(output: Path) -> None:
    for leftover in output.parent.glob(f".{output.name}.incomplete-*"):
        pid = leftover.name.rpartition("-")[2]
        if pid.isdigit() and not _running(int(pid)):
            shutil.rmtree(leftover, ignore_errors=True)


def _running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _replace(folder: Path, output: Path) -> None:
    if not output.exists():
        folder.rename(output)
        return
    # Two renames: a folder that is not empty can't be replaced in one. The old one is deleted last.
    old = output.parent / f".{output.name}.replaced-{os.getpid()}"
    output.rename(old)
    try:
        folder.rename(output)
    except OSError:
        old.rename(output)
        raise
    shutil.rmtree(old, ignore_errors=True)
