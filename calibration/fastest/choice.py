"""The choice of the fastest: by times of the same rounds, and by losses where times do not tell candidates apart."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from catp.calibration.benchmark.timing.intervals import Ratio, paired_ratio

ALPHA = 0.05
"""The chance that what is confirmed loses more than the budget, at most, however often confirmation is tried."""


@dataclass(frozen=True)
class Choice:
    """The chosen candidate, and those that it was chosen among, as numbers."""

    fastest: int
    chosen: int
    tied: tuple[int, ...]  # not clearly slower than the fastest; the chosen one and the fastest are among them
    behind: Mapping[int, Ratio]  # time over that of the fastest


def choose(
    times: Mapping[int, Sequence[float]], differences: Mapping[int, float], among: Iterable[int], seed: int
) -> Choice:
    """The candidate with the smallest median time; of those that are not clearly slower the one that loses least.

    Candidates of which none loses anything are told apart by their medians.

    Args:
        times: milliseconds by round, as many of each.
        differences: accuracy minus that without pruning; a gain counts as no loss.
        among: the candidates, at least one.
        seed: of the intervals.
    """
    median = {place: float(np.median(times[place])) for place in among}
    fastest = min(median, key=lambda place: median[place])
    behind = {place: paired_ratio(times[place], times[fastest], seed) for place in median if place != fastest}
    tied = tuple(place for place in median if place == fastest or not _is_slower(behind[place]))
    chosen = min(tied, key=lambda place: (max(0.0, -differences[place]), median[place]))
    return Choice(fastest, chosen, tied, behind)


def _is_slower(behind: Ratio) -> bool:
    """Whether its interval lies above 1; with too few rounds there is none, and nothing is told apart."""
    return behind.interval_95 is not None and behind.interval_95[0] > 1


def confidence_of(attempt: int) -> float:
    """The confidence that an attempt to confirm needs, from 1 on: 0.95, 0.975, 0.9875, ...

    A loss is looked for on one side: the first attempt errs in 2.5 % of cases, each later one half as often as the one
    before, and all together in less than ALPHA. With 95 % for each, the next fastest would be tried until one passes
    by luck.
    """
    return 1 - ALPHA / 2 ** (attempt - 1)


def front(medians: Sequence[float], accuracies: Sequence[float]) -> list[bool]:
    """Whether each is on the Pareto front: nothing else is as fast and as accurate, and better in one of both."""
    points = list(zip(medians, accuracies))
    return [not any(other[0] <= one[0] and other[1] >= one[1] and other != one for other in points) for one in points]
