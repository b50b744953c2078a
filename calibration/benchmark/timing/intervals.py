"""How sure a ratio or a difference of durations is: bootstrap intervals of paired and of separate runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

RESAMPLES = 2000
FEWEST = 6
"""With five values, all of them lie on one side of the median once in sixteen times: no 95 % interval exists."""


class Ratio(BaseModel):
    """A ratio of durations with its 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    median: float
    interval_95: tuple[float, float] | None = Field(description=f"None with fewer than {FEWEST} values")

    @property
    def is_clear(self) -> bool:
        """Whether 1 is outside the interval."""
        return self.interval_95 is not None and not self.interval_95[0] <= 1 <= self.interval_95[1]


class MedianDifference(BaseModel):
    """A difference of durations in milliseconds with its 95 % interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    median: float
    interval_95: tuple[float, float] | None = Field(description=f"None with fewer than {FEWEST} values")

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval; everything where there is none."""
        return self.interval_95 or (float("-inf"), float("inf"))


def median_difference(values: Sequence[float], baseline: Sequence[float], seed: int) -> MedianDifference:
    """Median of values[i] - baseline[i], milliseconds, where both were measured in round i.

    Raises:
        ValueError: they differ in length, or are empty.
    """
    above, below = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if above.shape != below.shape or not above.size:
        raise ValueError(f"{above.shape} values and {below.shape} baselines: as many of both, at least one")
    differences = above - below
    medians = _resampled_medians(differences, np.random.default_rng(seed))
    return MedianDifference(median=float(np.median(differences)), interval_95=_interval(differences.size, medians))


def paired_ratio(values: Sequence[float], baseline: Sequence[float], seed: int) -> Ratio:
    """Median of values[i] / baseline[i], where both were measured in round i.

    What disturbs a machine for longer than a round disturbs both, and the quotient takes it out.

    Raises:
        ValueError: they differ in length, are empty, or a baseline is not positive.
    """
    above, below = np.asarray(values, np.float64), np.asarray(baseline, np.float64)
    if above.shape != below.shape or not above.size or (below <= 0).any():
        raise ValueError(f"{above.shape} values and {below.shape} baselines: as many of both, baselines positive")
    quotients = above / below
    medians = _resampled_medians(quotients, np.random.default_rng(seed))
    return Ratio(median=float(np.median(quotients)), interval_95=_interval(quotients.size, medians))


def ratio_of_medians(new: Sequence[float], old: Sequence[float], seed: int) -> Ratio:
    """Median of `new` over median of `old`: two runs that share no rounds.

    Raises:
        ValueError: one is empty, or the old median is not positive.
    """
    above, below = np.asarray(new, np.float64), np.asarray(old, np.float64)
    if not above.size or not below.size or np.median(below) <= 0:
        raise ValueError(f"{above.size} new and {below.size} old values: at least one of each, old ones positive")
    rng = np.random.default_rng(seed)
    medians = _resampled_medians(above, rng) / _resampled_medians(below, rng)
    return Ratio(
        median=float(np.median(above) / np.median(below)),
        interval_95=_interval(min(above.size, below.size), medians),
    )


def _interval(count: int, medians: NDArray[np.float64]) -> tuple[float, float] | None:
    if count < FEWEST:
        return None
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def _resampled_medians(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Medians of resamples [RESAMPLES], drawn in runs of neighbours.

    Neighbouring rounds resemble each other (clock speed, other users), so values drawn one by one would promise too
    narrow an interval. Runs are n^(1/3) long and wrap around: the circular block bootstrap (Politis and Romano, 1992).
    """
    count = len(values)
    length = max(1, round(count ** (1 / 3)))
    blocks = -(-count // length)
    starts = rng.integers(count, size=(RESAMPLES, blocks))
    indices = (starts[:, :, None] + np.arange(length)) % count
    return np.median(values[indices.reshape(RESAMPLES, -1)[:, :count]], axis=1)
