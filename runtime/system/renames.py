"""Renames that remove nothing: they fail where the new name is taken, or exchange two names in one step."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_NOREPLACE: Final = 1
_EXCHANGE: Final = 2
_UNSUPPORTED: Final = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""Of a kernel, or a file system, that knows no such flags."""


def rename_to_free(source: Path, target: Path) -> None:
    """Rename; raises FileExistsError where something has the name already, checked in the same step."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if source.is_dir():
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        # What it replaces at most is an empty folder that was made since: any other is refused.
        try:
            source.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
            raise
        return
    os.link(source, target)
    source.unlink()


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names that both exist; whether this file system can."""
    return _renameat2(one, other, _EXCHANGE)


def _renameat2(source: Path, target: Path, flag: int) -> bool:
    """Whether it was done; False where it can't be, OSError where it may not."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2  # Linux, since glibc 2.28
    except (AttributeError, OSError, TypeError):
        return False
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))
