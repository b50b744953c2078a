"""Publishing a folder in one step: it appears whole under its name, or not at all."""

from __future__ import annotations

import glob
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from catp.runtime.bundle.manifest import MANIFEST_NAME
from catp.runtime.errors import CatpError, UsageError


@contextmanager
def published(output: Path, overwrite: bool, holds: str | None = MANIFEST_NAME) -> Iterator[Path]:
    """A temporary folder beside `output` that is renamed to it on success and removed on failure.

    One that is interrupted (Ctrl-C, SIGTERM) leaves nothing. One that is killed leaves the temporary folder
    (`.NAME.incomplete-PID`), which the next export to the same place removes; one killed in the very moment of
    replacing leaves the old bundle as `.NAME.replaced-PID`, which the next export puts back. Whoever fills the folder
    writes what nothing loads without last.

    Args:
        holds: a file by which a folder of ours is known: only such a one is replaced. None: by its place it is ours.

    Raises:
        UsageError: `output` is taken, or is something that must not be replaced.
        CatpError: it can't be written (disk full, permissions).
    """
    try:
        output = output.resolve()  # a link keeps pointing where it points
        _clean_up(output)
        check_free(output, overwrite, holds)
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = output.parent / f".{output.name}.incomplete-{os.getpid()}"
        folder.mkdir()
    except OSError as error:
        raise CatpError(f"output {str(output)[:200]}: can't write there ({error.strerror})") from None
    with _termination_as_exit():
        try:
            yield folder
            _move(folder, output, holds)
        except OSError as error:
            raise CatpError(
                f"output {output}: writing failed ({error.strerror or error}); nothing was published"
            ) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """While it lasts, SIGTERM (a container that stops, a job out of time) unwinds as Ctrl-C does: gigabytes go away."""
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for the same file, which is never written again; a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def check_free(output: Path, overwrite: bool, holds: str | None = MANIFEST_NAME) -> None:
    """Raises UsageError where `output` is taken: worth knowing before the work is done."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageError(f"output {output}: it is a file; give a folder")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise UsageError(f"output {output}: the folder is not empty; give another one, or --overwrite to replace it")
    if holds is not None and not (output / holds).is_file():
        raise UsageError(
            f"output {output}: it holds no {holds}, so it is none of ours and --overwrite does not replace it; "
            "give another one"
        )


def _clean_up(output: Path) -> None:
    """Undo what killed exports to the same place left behind."""
    for old in _left_behind(output, "replaced"):
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(output)
    for incomplete in _left_behind(output, "incomplete"):
        shutil.rmtree(incomplete, ignore_errors=True)


def _left_behind(output: Path, what: str) -> list[Path]:
    found = output.parent.glob(f".{glob.escape(output.name)}.{what}-*")
    return [path for path in found if not _in_use(path.name.rpartition("-")[2])]


def _in_use(pid: str) -> bool:
    """Whether another process of that number runs; in a container, ours may be a dead one's."""
    if not pid.isdigit() or int(pid) == os.getpid():
        return False
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _move(folder: Path, output: Path, holds: str | None) -> None:
    if not output.exists():
        folder.rename(output)
    elif not any(output.iterdir()):
        # Somebody's current folder, or a mount point: filled rather than replaced, manifest last.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == holds):
            shutil.move(path, output / path.name)
    else:
        # Two renames: a folder that is not empty can't be replaced in one. The old one is deleted last.
        old = output.parent / f".{output.name}.replaced-{os.getpid()}"
        output.rename(old)
        try:
            folder.rename(output)
        except OSError:
            old.rename(output)
            raise
        shutil.rmtree(old, ignore_errors=True)
