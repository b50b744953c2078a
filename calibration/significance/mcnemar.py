"""McNemar's test of two ways to answer the same questions, each answer right or wrong."""

from __future__ import annotations


def mcnemar_exact(better: int, worse: int) -> float:
    """Two-sided p-value, 0 to 1: how likely questions split at least so unevenly if either way wins as often.

    Questions that both ways answer right, or both wrong, say nothing. Of the others, each goes to one way with
    probability 1/2, so that what one of them wins is binomial; the distribution itself, not McNemar's chi-square, which
    is its limit for many.

    Source: Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (1947), 153-157.

    Args:
        better: questions that the first way alone answers right.
        worse: questions that the second way alone answers right.

    Raises:
        ValueError: one is negative.
    """
    if better < 0 or worse < 0:
        raise ValueError(f"better {better} and worse {worse}: give counts of questions, 0 or more")
    total = better + worse
    ways = term = 1  # whole numbers: binomial coefficients exceed any float
    for chosen in range(min(better, worse)):
        term = term * (total - chosen) // (chosen + 1)
        ways += term
    return min(1.0, 2 * ways / 2**total)
