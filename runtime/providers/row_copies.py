"""Copying rows within a device's memory as it is asked for: rectangles of bytes, computed on the host."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RowCopies:
    """Rectangles of one size, `height` lines of `width` bytes."""

    width: int
    height: int
    source_pitch: int  # bytes from the beginning of a line to that of the next
    target_pitch: int
    offsets: list[tuple[int, int]]  # bytes from the tensors' beginnings, where each is read and where it is written


def row_copies(
    source: tuple[int, ...],
    target: tuple[int, ...],
    itemsize: int,
    rows: np.ndarray,
    target_rows: np.ndarray,
    length: int,
) -> RowCopies:
    """The rectangles of `Engine.copy_rows`.

    Args:
        source, target: shapes [B, ..., M, d], alike but for B and M.
        itemsize: bytes of an element.
        rows, target_rows: int64, equally long.
        length: of M, what is copied.
    """
    width = source[-1] * itemsize
    height = int(np.prod(source[1:-2]))
    source_pitch, target_pitch = source[-2] * width, target[-2] * width
    offsets = [
        (row * height * source_pitch, target_row * height * target_pitch)
        for row, target_row in zip(rows.tolist(), target_rows.tolist())
    ]
    return RowCopies(length * width, height, source_pitch, target_pitch, offsets)
