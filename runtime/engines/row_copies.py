"""Copying rows within a device's memory as it is asked for: rectangles of bytes, computed on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RowCopies:
    """Rectangles of one size, `height` lines of `width` bytes that begin `pitch` bytes apart."""

    pitch: int
    width: int
    height: int
    offsets: list[tuple[int, int]]  # bytes from the tensors' beginnings, where each is read and where it is written


def row_copies(
    shape: tuple[int, ...], itemsize: int, rows: np.ndarray, target_rows: np.ndarray, length: int
) -> RowCopies:
    """The rectangles of `Engine.copy_rows`.

    Args:
        shape: [B, ..., M, d] of the source; the target's but for B.
        itemsize: bytes of an element.
        rows, target_rows: int64, equally long.
        length: of M, what is copied.
    """
    width = shape[-1] * itemsize
    pitch = shape[-2] * width
    height = int(np.prod(shape[1:-2]))
    row = height * pitch
    offsets = [(source * row, target * row) for source, target in zip(rows.tolist(), target_rows.tolist())]
    return RowCopies(pitch, length * width, height, offsets)
