"""How sure a mean over questions is: its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCK = 1 << 22
"""Counts drawn at a time (int64, so 32 MiB), whatever the number of questions."""


@dataclass(frozen=True)
class MeanDifference:
    """Mean of a - b over the same questions, with its interval."""

    mean: float
    low: float
    high: float


def wilson_interval(right: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval for `right` of `total` questions, 95 % by default; sensible at 0 and 1 too."""
    n, p = total, right / total
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # The ends at 0 and 1 are missed by a rounding.
    return max(0.0, min(p, center - half)), min(1.0, max(p, center + half))


def bootstrap_interval(
    values: ArrayLike,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 2000,
    clusters: Sequence[str] | Sequence[int] | None = None,
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean of `values`, the same one for the same seed.

    Where all values are equal the interval has no width: a resample of them can't differ. For right-or-wrong values
    near 0 or 1, Wilson's interval says more.

    Args:
        values: [n] one number per question.
        clusters: [n] what is drawn as one, such as the image of each question: answers about one image are right or
            wrong together, and drawing them one by one makes the interval too narrow. None draws every value alone.

    Raises:
        ValueError: `values` is empty, not one-dimensional or not finite, or `clusters` has another length.
    """
    sums, sizes = _cluster_sums(np.asarray(values, np.float64), clusters)
    # Which clusters a resample draws doesn't matter, only how often each kind of cluster comes up, and that is
    # multinomial. Accuracies take few values, so a set of 200,000 questions has some hundred kinds.
    kinds, counts = np.unique(np.stack([sums, sizes], axis=1), axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    block = max(1, BLOCK // len(kinds))
    means = []
    for start in range(0, resamples, block):
        drawn = rng.multinomial(len(sums), counts / len(sums), size=min(block, resamples - start))
        totals = drawn @ kinds  # [block, 2]: sum of the drawn values, and how many they are
        means.append(totals[:, 0] / totals[:, 1])
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def mean_difference(
    a: ArrayLike,
    b: ArrayLike,
    seed: int,
    confidence: float = 0.95,
    resamples: int = 2000,
    clusters: Sequence[str] | Sequence[int] | None = None,
) -> MeanDifference:
    """Mean of a - b with its bootstrap interval, where `a[i]` and `b[i]` belong to the same question.

    Questions differ in difficulty far more than settings do, and pairing takes that out: two overlapping intervals
    of their own can hide a difference that this one shows.

    Args:
        a, b: [n] one number per question.
        clusters: as for `bootstrap_interval`.

    Raises:
        ValueError: as `bootstrap_interval`, or `a` and `b` differ in length.
    """
    left, right = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if left.shape != right.shape:
        raise ValueError(f"a has shape {left.shape} and b {right.shape}: give one value for the same question in each")
    low, high = bootstrap_interval(left - right, seed, confidence, resamples, clusters)
    return MeanDifference(float(np.mean(left - right)), low, high)


def _cluster_sums(
    values: NDArray[np.float64], clusters: Sequence[str] | Sequence[int] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and number of the values of each cluster, float64 [clusters] each."""
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"values of shape {values.shape}: a bootstrap needs a list of finite numbers, at least one")
    if clusters is None:
        return values, np.ones_like(values)
    if len(clusters) != len(values):
        raise ValueError(f"{len(clusters)} clusters for {len(values)} values: give one for each")
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    return np.bincount(member, values).astype(np.float64), np.bincount(member).astype(np.float64)


def unseen_losses(differences: np.ndarray, images: Sequence[str], z: float = 1.96) -> float:
    """The share of images that may lose beyond the share that did: to the upper end of its Wilson interval.

    A bootstrap knows only losses that it has seen; of few losses, or none, it is far too sure.

    Args:
        differences: [n] accuracy with pruning minus without, per question.
        images: [n] the image of each question: one that loses on any question counts as lost.
        z: of the interval, 95 % by default.
    """
    lost = len({image for image, difference in zip(images, differences) if difference < 0})
    total = len(set(images))
    return wilson_interval(lost, total, z)[1] - lost / total


def lowest_difference(
    values: np.ndarray, baseline: np.ndarray, images: Sequence[str], seed: int, confidence: float = 0.95
) -> tuple[MeanDifference, float]:
    """Mean of values - baseline, and how low it may be: the lower end of its interval, unseen losses included.

    Args:
        values, baseline: [n] accuracy per question.
        images: [n] the image of each question.
        confidence: of the interval. Above 0.95 more is drawn, so that as many resamples lie beyond its ends.
    """
    resamples = round(2000 * min(32.0, max(1.0, 0.05 / (1 - confidence))))
    found = mean_difference(values, baseline, seed, confidence, resamples, clusters=images)
    # Rounded up: 1.96 at 95 %, as everywhere.
    z = math.ceil(100 * NormalDist().inv_cdf((1 + confidence) / 2)) / 100
    return found, min(found.low, found.mean - unseen_losses(values - baseline, images, z))


def images_needed(budget: float) -> int:
    """How many images without any loss show that losses are rarer than `budget`: where Wilson's interval ends there."""
    return math.ceil(1.96**2 * (1 - budget) / budget)
