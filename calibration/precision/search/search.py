"""The fewest layers that have to stay in floating point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def fewest_kept(ranked: Sequence[T], is_good: Callable[[Sequence[T]], bool]) -> Sequence[T] | None:
    """The shortest beginning of `ranked` that is good, found in about 2 log2(n) tries; None where there is none.

    That the empty one is not good is known. Of all layers at least one is quantised, or there is nothing to gain. It
    takes for granted that keeping more layers is never worse; where that is not so, what it returns is good all the
    same, only perhaps not the shortest.

    Args:
        ranked: layers, the most sensitive first.
        is_good: whether the rest may be quantised.
    """
    most = len(ranked) - 1
    if most < 1:
        return None
    bad, good = 0, 1
    while not is_good(ranked[:good]):
        if good == most:
            return None
        bad, good = good, min(2 * good, most)
    while good - bad > 1:
        middle = (bad + good) // 2
        if is_good(ranked[:middle]):
            good = middle
        else:
            bad = middle
    return ranked[:good]
