"""The size of a quantisation step: what stored integers are multiplied by, in the graph's own float type."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def step_size(largest: ArrayLike, steps: float, kind: np.dtype) -> np.ndarray:
    """The size of steps of which `steps` reach `largest`; never 0, so that what is 0 stays 0.

    In float16 it may be as small as the type's smallest number, of which all others are multiples: whatever is that
    small is stored exactly. Where float16 has few digits left, sizes are rounded up, or the largest numbers would be
    cut off. In float32 it ends at the smallest normal number: below it 1 / size is infinite, and kernels disagree.
    """
    info = np.finfo(kind)
    exact = np.asarray(largest, np.float64) / steps
    with np.errstate(under="ignore"):
        size = exact.astype(kind)
    size = np.where((size < info.tiny) & (size < exact), np.nextafter(size, kind.type(1)), size)
    smallest = info.smallest_subnormal if kind == np.float16 else info.tiny
    return np.asarray(np.maximum(size, smallest))
