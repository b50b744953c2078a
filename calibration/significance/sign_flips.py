"""Sign flips: a test of paired differences of any size, such as those of a measure that gives parts of a point."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

FLIPS = 99_999
"""Drawn at random where there are too many to go through; the smallest p-value is then 1 / 100,000."""

OUTCOMES = 200_000
"""Sums that are gone through, at most."""

DECIMALS = 9
"""Decimals of a difference that count: 0.9 - 0.6 and 0.3 differ by less, a rounding."""


def sign_flip_test(
    differences: ArrayLike,
    seed: int,
    clusters: Sequence[str] | Sequence[int] | None = None,
    outcomes: int = OUTCOMES,
) -> float:
    """Two-sided p-value of a mean difference, above 0 and at most 1.

    If two ways to answer are equally good, either could have given the one answer and the other the other, so that a
    difference is as likely with the opposite sign. The p-value is the share of all choices of signs whose sum is at
    least as far from 0 as the one observed: over all choices where their sums are few enough, and else over FLIPS drawn
    at random, the observed one counted among them. Of differences of 1 and -1 it is McNemar's.

    Sources: R. A. Fisher, The design of experiments (1935), section 21; B. Phipson and G. K. Smyth, Permutation
    p-values should never be zero, Stat. Appl. Genet. Mol. Biol. 9 (2010), 39.

    Args:
        differences: [n] one number per question.
        seed: of the drawn signs.
        clusters: [n] whose differences have one sign together, such as the image of each question: answers about one
            image are right or wrong together. None flips every question alone.
        outcomes: sums that are gone through, at most.

    Raises:
        ValueError: `differences` is empty, not one-dimensional or not finite, or `clusters` has another length.
    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"differences of shape {values.shape}: give a list of finite numbers, at least one")
    if clusters is not None:
        if len(clusters) != len(values):
            raise ValueError(f"{len(clusters)} clusters for {len(values)} differences: give one for each")
        values = np.bincount(np.unique(np.asarray(clusters), return_inverse=True)[1], values).astype(np.float64)
    values = np.round(values, DECIMALS)
    sizes, counts = np.unique(np.abs(values[values != 0]), return_counts=True)
    least = abs(float(values.sum())) - 10.0**-DECIMALS * max(1, len(values)) / 2
    # Differences of one size are alike: only how many of them are positive matters, and that is binomial.
    if math.prod((counts + 1).tolist()) <= outcomes:
        sums, chances = _every_sum(sizes, counts)
        return min(1.0, float(chances[np.abs(sums) >= least].sum()))
    rng = np.random.default_rng(seed)
    drawn = np.zeros(FLIPS)
    for size, count in zip(sizes, counts):
        drawn += size * (2 * rng.binomial(count, 0.5, FLIPS) - count)
    return (1 + int((np.abs(drawn) >= least).sum())) / (1 + FLIPS)


def _every_sum(
    sizes: NDArray[np.float64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums float64 [outcomes] of all choices of signs, and their probabilities float64 [outcomes]."""
    sums, chances = np.zeros(1), np.ones(1)
    for size, count in zip(sizes.tolist(), counts.tolist()):
        positive = range(count + 1)
        sums = np.add.outer(sums, size * (2 * np.arange(count + 1) - count)).ravel()
        chances = np.multiply.outer(chances, [_binomial(k, count) for k in positive]).ravel()
    return sums, chances


def _binomial(successes: int, trials: int) -> float:
    """Probability of so many successes, each being as likely as not."""
    log = math.lgamma(trials + 1) - math.lgamma(successes + 1) - math.lgamma(trials - successes + 1)
    return math.exp(log - trials * math.log(2))
