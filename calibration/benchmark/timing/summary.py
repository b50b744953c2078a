"""The summary of a list of durations: percentiles, mean and spread."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

PERCENTILES = (50, 90, 95, 99)


class Summary(BaseModel):
    """Durations of one stage in one setting, in milliseconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int
    min: float
    mean: float
    std: float | None = Field(description="of a sample (n - 1); None of a single one")
    p50: float
    p90: float | None = Field(description="linear interpolation; None where `needed` samples were not taken")
    p95: float | None
    p99: float | None

    @property
    def variation(self) -> float | None:
        """Coefficient of variation: standard deviation over mean."""
        return None if self.std is None or not self.mean else self.std / self.mean


def percentile(values: Sequence[float], percent: float) -> float:
    """By linear interpolation between the two nearest ranks, as numpy's default: rank (n - 1) * percent / 100.

    Raises:
        ValueError: there are no values, or percent is not within 0 and 100.
    """
    if not values or not 0 <= percent <= 100:
        raise ValueError(f"percentile {percent} of {len(values)} values")
    ordered = sorted(values)
    rank = (len(ordered) - 1) * percent / 100
    below = math.floor(rank)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (rank - below) * (ordered[above] - ordered[below])


def needed(percent: int) -> int:
    """Samples without which a percentile above the median is guesswork: one of them must be expected beyond it.

    The median is the middle of whatever there is.
    """
    return 1 if percent <= 50 else -(-100 // (100 - percent))


def summarize(values: Sequence[float]) -> Summary:
    """Durations in milliseconds, at least one; percentiles that they are too few for are missing."""
    count = len(values)
    mean = math.fsum(values) / count
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1)) if count > 1 else None

    def at(percent: int) -> float | None:
        return percentile(values, percent) if count >= needed(percent) else None

    return Summary(
        samples=count,
        min=min(values),
        mean=mean,
        std=deviation,
        p50=percentile(values, 50),
        p90=at(90),
        p95=at(95),
        p99=at(99),
    )
