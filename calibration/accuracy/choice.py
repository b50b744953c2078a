"""Which query tokens a setting keeps: chosen here as the graph would, for many settings from one run of it."""

from __future__ import annotations

import hashlib

import numpy as np

from catp.calibration.accuracy.settings import Setting
from catp.runtime.pruning import num_kept, top_by_mass, top_indices


def kept_tokens(setting: Setting, scores: np.ndarray) -> list[np.ndarray]:
    """Ascending indices int64 [k] for each of B questions, or frames; only with a share of the votes k differs.

    Args:
        scores: float32 [B, N] by the setting's method.
    """
    if setting.ratio is not None:
        return list(top_indices(scores, num_kept(setting.ratio, scores.shape[1])))
    assert setting.keep_mass is not None
    return top_by_mass(scores, setting.keep_mass)


def random_scores(seed: int, question_id: str, num_query_tokens: int) -> np.ndarray:
    """Scores float32 [N] that put the query tokens of one question in random order.

    Ranked by a hash rather than drawn by a generator: independent of library versions, batches and devices. At a higher
    ratio a part of the tokens of a lower one is kept, as with every method.
    """
    digests = [hashlib.sha256(f"{seed} {question_id} {query}".encode()).digest() for query in range(num_query_tokens)]
    scores = np.empty(num_query_tokens, np.float32)
    scores[sorted(range(num_query_tokens), key=digests.__getitem__)] = np.arange(num_query_tokens, 0, -1)
    return scores
