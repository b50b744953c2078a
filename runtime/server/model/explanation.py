"""The vote behind an answer, in numbers that a client can draw."""

from __future__ import annotations

import numpy as np

from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.bundle.manifest import QUERY_ATTENTION
from catp.runtime.image_sides.query_tokens import Votes
from catp.runtime.server.shapes import Explanation


def explain(votes: Votes, kept: np.ndarray, image: ImageSpec) -> Explanation:
    """The score of each query token, and, of a bundle with diagnostics, where those kept and those dropped look.

    Args:
        votes: of one picture.
        kept: int64 [k], indices of its query tokens.

    Returns:
        scores [N]; attention, where there is any: rows, columns, and by patch, row by row, the mean share of it that
        falls there, of tokens kept and of those dropped (null where there are none).
    """
    scores = votes.scores[0]
    found: Explanation = {"scores": [round(float(score), 6) for score in scores]}
    if QUERY_ATTENTION not in votes.outputs:
        return found
    attention = votes.outputs[QUERY_ATTENTION][0][:, 1:]  # the first image token is CLS
    shape = _grid(image, attention.shape[1])
    if shape is None:
        return found
    dropped = np.setdiff1d(np.arange(len(scores)), kept)
    found["attention"] = {
        "rows": shape[0],
        "columns": shape[1],
        "kept": _mean(attention[kept]),
        "dropped": _mean(attention[dropped]) if len(dropped) else None,
    }
    return found


def _mean(attention: np.ndarray) -> list[float]:
    return [round(float(share), 7) for share in attention.mean(0)]


def _grid(image: ImageSpec, patches: int) -> tuple[int, int] | None:
    """Rows and columns of the square patches that a picture is cut into; None where no grid has so many."""
    for side in range(min(image.height, image.width), 0, -1):
        if (image.height // side) * (image.width // side) == patches:
            return image.height // side, image.width // side
    return None
