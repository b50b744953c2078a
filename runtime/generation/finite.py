"""Scores that are no numbers: an error by name, never an answer."""

from __future__ import annotations

import numpy as np

from catp.runtime.errors import GraphError


def check_finite(graph: str, logits: np.ndarray, rows: np.ndarray) -> None:
    """Raises GraphError where a row's highest score is not finite: NaN counts as the highest of all.

    Args:
        graph: that computed them.
        logits: [R, V].
        rows: bool [R] or indices, those that mean something.
    """
    if not np.isfinite(logits.max(axis=1)[rows]).all():
        raise GraphError(
            graph,
            "its scores of the next token are not finite (NaN or infinite), so there is no answer; in half precision, "
            "an export with --precision fp32 may help",
        )
