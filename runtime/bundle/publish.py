"""Publishing a folder in one step: it appears whole under its name, or not at all."""

from __future__ import annotations

import errno
import glob
import os
import re
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from catp.runtime.bundle.folder import check_name
from catp.runtime.bundle.manifest import MANIFEST_NAME
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.system.folder_locks import FolderLock, lock_folder
from catp.runtime.system.renames import exchange, rename_to_free

_ENDINGS = re.compile(r"[0-9a-f]{16}|[0-9]+")
"""Endings of our names: random, or as they were once, the number of a process."""


@contextmanager
def published(output: Path, overwrite: bool, holds: str | None = MANIFEST_NAME) -> Iterator[Path]:
    """A temporary folder beside `output` that is renamed to it on success and removed on failure.

    One that is interrupted (Ctrl-C, SIGTERM, SIGHUP) leaves nothing. One that is killed leaves the temporary folder
    (`.NAME.incomplete-RANDOM`), which the next export to the same place removes: as long as its process lives, in
    whatever container, it is locked. Whoever fills the folder writes what nothing loads without last.

    What `output` is, is looked at again in the moment of the rename: what somebody else has put there meanwhile stays.

    Args:
        holds: a file by which a folder of ours is known: only such a one is replaced. None: by its place it is ours.

    Raises:
        UsageError: `output` is taken, or is something that must not be replaced.
        CatpError: it can't be written (disk full, permissions).
    """
    with _termination_as_exit(), ExitStack() as stack:
        try:
            output = output.resolve()  # a link keeps pointing where it points
            check_name("output", output)
            _clean_up(output)
            check_free(output, overwrite, holds)
            output.parent.mkdir(parents=True, exist_ok=True)
            folder = _new_folder(output, stack)
        except OSError as error:
            raise CatpError(f"output {str(output)[:200]}: can't write there ({error.strerror})") from None
        try:
            yield folder
            _move(folder, output, overwrite, holds)
        except OSError as error:
            raise CatpError(f"{_culprit(error, output)}; nothing was published") from error


def _new_folder(output: Path, stack: ExitStack) -> Path:
    """A folder of a name that nobody else has, locked, and removed in the end."""
    while True:
        folder = output.parent / f".{output.name}.incomplete-{secrets.token_hex(8)}"
        stack.callback(shutil.rmtree, folder, ignore_errors=True)  # before there is one: a signal may come in between
        folder.mkdir()
        lock = lock_folder(folder)
        if lock is not None:
            stack.callback(lock.release)
        if folder.exists():  # or else somebody cleaned up between the two lines above
            return folder


def _culprit(error: OSError, output: Path) -> str:
    """The place that could not be written: the output, or a temporary file elsewhere."""
    reason = error.strerror or error
    if isinstance(error, FileNotFoundError) and error.filename is None:  # tempfile found no folder at all
        return f"{reason}; set TMPDIR to a folder with room"
    temporary: Path | None = None
    with suppress(OSError):
        temporary = Path(tempfile.gettempdir())
    named = Path(os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes) else None
    if named is not None and output.parent not in named.parents:
        return f"{named}: {reason}"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    if (
        full
        and named is None
        and temporary
        and shutil.disk_usage(temporary).free < shutil.disk_usage(output.parent).free
    ):
        return f"{temporary}: writing failed ({reason}); set TMPDIR to a folder with more room"
    return f"output {output}: writing failed ({reason})"


@contextmanager
def _termination_as_exit() -> Iterator[None]:
    """While it lasts, SIGTERM (a container that stops, a job out of time) and SIGHUP (a terminal that closes) unwind as
    Ctrl-C does: gigabytes go away."""
    if threading.current_thread() is not threading.main_thread():  # only there may signals be handled
        yield
        return

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup has it ignored
            before[number] = signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    _check_ours(output, output, holds)


def _check_ours(folder: Path, output: Path, holds: str | None) -> None:
    """Args: folder: what `output` is, or was a moment ago."""
    if not folder.is_dir():
        raise UsageError(f"output {output}: it is a file; give a folder")
    if holds is not None and not (folder / holds).is_file():
        writer = "catp-export" if holds == MANIFEST_NAME else "this command"
        raise UsageError(
            f"output {output}: it holds no {holds}, so {writer} did not write it and --overwrite does not replace it; "
            "give another one"
        )


def _clean_up(output: Path) -> None:
    """Undo what killed exports to the same place left behind."""
    for old, lock in _left_behind(output, "replaced"):
        try:
            rename_to_free(old, output)
        except FileExistsError:
            shutil.rmtree(old, ignore_errors=True)
        lock.release()
    for incomplete, lock in _left_behind(output, "incomplete"):
        shutil.rmtree(incomplete, ignore_errors=True)
        lock.release()


def _left_behind(output: Path, what: str) -> Iterator[tuple[Path, FolderLock]]:
    """Folders that nobody works in, locked."""
    for path in output.parent.glob(f".{glob.escape(output.name)}.{what}-*"):
        ending = path.name.rpartition("-")[2]
        if _ENDINGS.fullmatch(ending) and not _is_process(ending) and (lock := lock_folder(path)):
            yield path, lock


def _is_process(ending: str) -> bool:
    """Whether it is the number of another process: earlier versions had numbers, and no locks."""
    if len(ending) == 16 or int(ending) == os.getpid():
        return False
    try:
        os.kill(int(ending), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _move(folder: Path, output: Path, overwrite: bool, holds: str | None) -> None:
    try:
        rename_to_free(folder, output)
        return
    except FileExistsError:
        pass
    if output.is_dir() and not any(output.iterdir()):
        _fill(output, folder, holds)
    elif not overwrite:
        raise _taken(output)
    elif exchange(folder, output):
        try:
            _check_ours(folder, output, holds)
        except UsageError:
            exchange(folder, output)
            raise
    else:
        _replace(folder, output, holds)


def _taken(output: Path) -> UsageError:
    return UsageError(
        f"output {output}: somebody else has put something there meanwhile; nothing was published, give another one"
    )


def _fill(output: Path, folder: Path, holds: str | None) -> None:
    """Into an empty folder, which may be somebody's current one or a mount point; what nothing loads without last."""
    lock = lock_folder(output, wait=True)
    moved: list[Path] = []
    try:
        if any(output.iterdir()):
            raise FileExistsError
        for path in sorted(folder.iterdir(), key=lambda path: path.name == holds):
            _move_in(path, output / path.name)
            moved.append(output / path.name)
    except BaseException as error:
        for path in moved:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError):
            raise _taken(output) from None
        raise
    finally:
        if lock is not None:
            lock.release()


def _move_in(source: Path, target: Path) -> None:
    try:
        rename_to_free(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        near = target.with_name(f".{target.name}.incomplete-{secrets.token_hex(8)}")
        try:
            shutil.copytree(source, near) if source.is_dir() else shutil.copy2(source, near)
            rename_to_free(near, target)
        except BaseException:
            shutil.rmtree(near, ignore_errors=True) if near.is_dir() else near.unlink(missing_ok=True)
            raise


def _replace(folder: Path, output: Path, holds: str | None) -> None:
    """In two renames, where the file system can't exchange names: killed between them, the old folder is left as
    `.NAME.replaced-RANDOM`, which the next export puts back."""
    old = output.parent / f".{output.name}.replaced-{secrets.token_hex(8)}"
    lock = lock_folder(output)
    output.rename(old)
    try:
        _check_ours(old, output, holds)
        rename_to_free(folder, output)
    except BaseException:
        rename_to_free(old, output)
        raise
    finally:
        if lock is not None:
            lock.release()
    shutil.rmtree(old, ignore_errors=True)
