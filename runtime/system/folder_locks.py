"""Locks on folders: who works in one holds it, and it goes with the process, in whatever container that is."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


class FolderLock:
    """A folder that nobody else works in, until `release`."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    def release(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def lock_folder(folder: Path, wait: bool = False) -> FolderLock | None:
    """The lock; None where somebody else has it, where the folder is gone, or where there are no such locks.

    Args:
        wait: until it is free.
    """
    if fcntl is None:
        return None
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.stat()):  # nobody removed it in between
            return FolderLock(descriptor)
    except OSError:
        pass
    os.close(descriptor)
    return None
