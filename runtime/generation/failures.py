"""Scores that no token can be chosen by, and the errors that say so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from catp.runtime.bundle.generation_settings import GenerationSettings
from catp.runtime.errors import GraphError, UsageError

quietly = np.errstate(all="ignore")
"""For functions that settings make overflow: what comes of it is looked at, and a warning besides says less."""


@contextmanager
def stage_named(stage: str) -> Iterator[None]:
    """An error of a graph says in which stage of the work it came."""
    try:
        yield
    except GraphError as error:
        raise error.during(stage) from error


def check_scores(scores: np.ndarray, settings: GenerationSettings, answered: int) -> None:
    """Raises UsageError where the settings left scores that nothing can be drawn by.

    Args:
        answered: how many tokens the answer has.
    """
    best = scores.max()  # NaN, where there is one
    if np.isneginf(best):
        raise UsageError(
            f"{settings.describe()}: after {answered} tokens none is left that may come next; give a smaller "
            "max_new_tokens, or settings that forbid less"
        )
    if not np.isfinite(best):
        raise not_finite(settings, answered)


def not_finite(settings: GenerationSettings, answered: int) -> UsageError:
    """The error where settings made scores overflow."""
    return UsageError(
        f"{settings.describe()}: scores are not finite after {answered} tokens; give settings that are less extreme"
    )
