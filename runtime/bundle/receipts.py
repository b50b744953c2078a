"""Receipts: the hash that a large file had when it was read last, for as long as nobody touched the file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from catp.runtime.files import sha256, write_file
from catp.runtime.system.cache import cache_folder

SMALLEST = 1 << 20
"""Bytes; smaller files are hashed faster than a receipt is found."""

SETTLED_NS = 2_000_000_000
"""Age of a file's last change from which on a receipt is written: a change within the same tick of the file system's
clock would leave no trace."""


def hash_of(path: Path, anew: bool) -> str:
    """Hex SHA-256 of a file, by its receipt where there is one and the file is as it was.

    A receipt holds for one place, device, inode, size, time of modification and time of change; the last can't be set
    by programs. A file whose bits rot in place keeps its receipt: `anew` finds that.

    Args:
        anew: read the file whatever its receipt says.

    Raises:
        OSError: the file can't be read. Receipts that can't be read or written are none.
    """
    before = path.stat()
    if before.st_size < SMALLEST:
        return sha256(path)
    if not anew:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RuntimeError):  # the last: no home
            known = json.loads(_place(path).read_text())
            if known["file"] == _identity(path, before):
                return str(known["sha256"])
    began = time.time_ns()
    found = sha256(path)
    after = path.stat()
    settled = _identity(path, before) == _identity(path, after) and began - after.st_ctime_ns > SETTLED_NS
    if settled:
        with contextlib.suppress(Exception):  # no home, no room, no right: the next opening reads the file again
            receipt = _place(path)
            receipt.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps({"file": _identity(path, after), "sha256": found})
            write_file(receipt, lambda temporary: temporary.write_text(content))
    return found


def _identity(path: Path, found: os.stat_result) -> list[str | int]:
    numbers = [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]
    return [str(path.resolve()), *numbers]


def _place(path: Path) -> Path:
    name = str(path.resolve()).encode(errors="surrogateescape")
    return cache_folder("receipts") / f"{hashlib.sha256(name).hexdigest()[:32]}.json"
