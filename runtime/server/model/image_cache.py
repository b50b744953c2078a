"""Pictures that were seen before: one entry serves every ratio."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence

from catp.runtime.image_sides.query_tokens import Seen


class ImageCache:
    """Entries up to so many bytes together; those that nobody asked for longest go first. For several threads.

    Args:
        capacity: in bytes; 0: nothing is kept.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.bytes = 0
        self._entries: OrderedDict[bytes, Seen] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Seen | None:
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: bytes, seen: Seen) -> None:
        size = seen.nbytes
        if size > self.capacity:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = seen
            self.bytes += size
            while self.bytes > self.capacity:
                _, gone = self._entries.popitem(last=False)
                self.bytes -= gone.nbytes

    def __len__(self) -> int:
        return len(self._entries)


def key_of(pictures: Sequence[bytes], bundle: bytes, prompt: str | None, salt: bytes) -> bytes:
    """The SHA-256 of everything that decides the votes of a picture, or of a video's frames.

    Args:
        pictures: as they were sent, byte for byte.
        bundle: what tells the model from every other.
        prompt: where votes depend on it; None: they don't.
        salt: of those who may know that others sent the picture; else the time of an answer would tell them.
    """
    digest = hashlib.sha256()
    parts = [bundle, salt, b"" if prompt is None else b"\x01" + prompt.encode(), *pictures]
    for part in parts:  # each hashed by itself: no two lists of parts have the same digest
        digest.update(hashlib.sha256(part).digest())
    return digest.digest()
