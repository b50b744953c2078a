"""Holm's correction of p-values for the number of comparisons."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p-values, 0 to 1, in the order given.

    Of all comparisons in which those below a level are said to differ, the chance to be wrong about even one is at most
    that level, however the comparisons depend on each other: the smallest p-value is multiplied by their number m, the
    next by m - 1, and so on, and none is corrected to less than a smaller one.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979), 65-70.

    Raises:
        ValueError: one is no probability.
    """
    if wrong := [p for p in p_values if not 0 <= p <= 1]:
        raise ValueError(f"p-value {wrong[0]}: it is from 0 to 1")
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
