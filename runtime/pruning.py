"""Pruning ratio and number of kept tokens: the one place where one becomes the other."""

from __future__ import annotations

import math
import numbers

from catp.runtime.errors import UsageError


def check_ratio(ratio: float) -> float:
    """The ratio itself, the fraction of query tokens removed.

    Raises:
        UsageError: it is not a number with 0 <= ratio < 1.
    """
    if not (isinstance(ratio, numbers.Real) and 0 <= ratio < 1):  # NaN fails both comparisons
        raise UsageError(f"ratio {ratio}: a pruning ratio is the fraction removed, 0 <= ratio < 1")
    return float(ratio)


def num_kept(ratio: float, num_query_tokens: int) -> int:
    """How many of `num_query_tokens` stay: round half up, at least one (32 -> 16 at 0.5, 3 at 0.9)."""
    return max(1, math.floor((1 - check_ratio(ratio)) * num_query_tokens + 0.5))
