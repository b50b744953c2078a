"""Drawing tokens at random: temperature, top-k, top-p, and a seed."""

from __future__ import annotations

import numpy as np

from catp.runtime.bundle.generation_settings import GenerationSettings


def warp(scores: np.ndarray, settings: GenerationSettings, least: int = 1) -> np.ndarray:
    """Scores float32 [V] after temperature, top-k and top-p, in transformers' order; what is left out is -inf.

    Args:
        least: tokens that are never left out.
    """
    if settings.temperature != 1:
        scores = scores / np.float32(settings.temperature)
    if settings.top_k:
        kept = min(max(settings.top_k, least), scores.size)
        smallest = np.partition(scores, scores.size - kept)[scores.size - kept]
        scores = np.where(scores < smallest, np.float32(-np.inf), scores)
    if settings.top_p < 1:
        ascending = np.argsort(scores, kind="stable")
        left_out = ascending[_cumulated(softmax(scores[ascending])) <= np.float32(1 - settings.top_p)]
        scores = scores.copy()
        scores[np.setdiff1d(left_out, ascending[scores.size - least :])] = -np.inf
    return scores


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities float32 [V]."""
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def _cumulated(probabilities: np.ndarray) -> np.ndarray:
    """Sums float32 [V] of all up to each, added up in float64 as PyTorch does: without rounding, no sum but
    the last is over 1."""
    return np.cumsum(probabilities, dtype=np.float64).astype(np.float32)


def draw(scores: np.ndarray, rng: np.random.Generator) -> int:
    """A token, as likely as the softmax of its score says."""
    total = np.cumsum(softmax(scores), dtype=np.float64)
    return int(np.searchsorted(total, rng.random() * total[-1], side="right"))


def draw_several(scores: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices int64 [count] in the order drawn, without replacement: the highest after Gumbel noise
    (arXiv 1903.06059)."""
    noisy = scores.astype(np.float64) + rng.gumbel(size=scores.shape)
    chosen = np.argpartition(-noisy, count - 1)[:count]
    return chosen[np.argsort(-noisy[chosen], kind="stable")]


def generators(seed: int | None, rows: int) -> list[np.random.Generator]:
    """A stream for every row of a batch: what one draws does not depend on when the others end."""
    if seed is None:
        return [np.random.default_rng() for _ in range(rows)]
    return [np.random.default_rng([seed, row]) for row in range(rows)]
