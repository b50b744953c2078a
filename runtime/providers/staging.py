"""Host buffers on the way to or from a device: reused, but never while a copy may still be under way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np

_SMALLEST = 4096


class StagingBuffer:
    """Host memory with a fixed address."""

    def __init__(self, address: int, memory: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
        self.address = address
        self.memory = memory

    @property
    def size(self) -> int:
        return self.memory.nbytes

    def view(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """The first bytes as an array."""
        size = int(np.prod(shape)) * dtype.itemsize
        return self.memory[:size].view(dtype).reshape(shape)


class StagingPool:
    """Buffers in powers of two.

    A buffer taken is in flight until `release`, which the owner calls when the device has done all that was queued.
    """

    def __init__(self, allocate: Callable[[int], StagingBuffer]) -> None:
        self._allocate = allocate
        self._free: dict[int, list[StagingBuffer]] = defaultdict(list)
        self._in_flight: list[StagingBuffer] = []

    def take(self, size: int) -> StagingBuffer:
        """A buffer of at least `size` bytes that nothing else uses."""
        rounded = max(_SMALLEST, 1 << (size - 1).bit_length())
        buffer = self._free[rounded].pop() if self._free[rounded] else self._allocate(rounded)
        self._in_flight.append(buffer)
        return buffer

    def release(self) -> None:
        """Everything queued is done: what was in flight may be taken again."""
        for buffer in self._in_flight:
            self._free[buffer.size].append(buffer)
        self._in_flight.clear()
