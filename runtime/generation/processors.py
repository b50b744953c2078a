"""Processors of scores before a token is chosen: the tokens before it, and how long the answer already is.

In transformers' order. Its `Blip2ForConditionalGeneration.generate()` hands a decoder-only language model the
`input_ids` beside the embeddings, so the ids that count are a placeholder for each query token, the prompt, and the
answer so far (`LanguageModel.context`); pads of a batch don't count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from catp.runtime.bundle.generation_settings import GenerationSettings

Processor = Callable[[np.ndarray, Sequence[int], int], np.ndarray]
"""Of scores float32 [V], all ids so far, and how many of them the answer has: the new scores."""


def make_processors(settings: GenerationSettings, ends: frozenset[int]) -> list[Processor]:
    """Those that the settings ask for.

    Args:
        ends: tokens that end an answer, for the least lengths.
    """
    found: list[Processor] = []
    if settings.repetition_penalty != 1:
        found.append(_repetition_penalty(settings.repetition_penalty))
    if settings.no_repeat_ngram_size:
        found.append(_no_repeat_ngram(settings.no_repeat_ngram_size))
    if ends and (settings.min_length or settings.min_new_tokens):
        found.append(_least_length(settings.min_length, settings.min_new_tokens, sorted(ends)))
    return found


def process(processors: Sequence[Processor], scores: np.ndarray, ids: Sequence[int], answered: int) -> np.ndarray:
    """All of them, one after the other; `scores` stay as they are."""
    for processor in processors:
        scores = processor(scores, ids, answered)
    return scores


def _repetition_penalty(penalty: float) -> Processor:
    """Tokens that were there before are less likely (arXiv 1909.05858)."""

    def apply(scores: np.ndarray, ids: Sequence[int], answered: int) -> np.ndarray:
        seen = _scored(np.unique(np.asarray(ids, np.int64)), scores)
        scores = scores.copy()
        before = scores[seen]
        scores[seen] = np.where(before < 0, before * np.float32(penalty), before / np.float32(penalty))
        return scores

    return apply


def _no_repeat_ngram(size: int) -> Processor:
    """No `size` tokens in a row twice."""

    def apply(scores: np.ndarray, ids: Sequence[int], answered: int) -> np.ndarray:
        if len(ids) < size:
            return scores
        every = np.lib.stride_tricks.sliding_window_view(np.asarray(ids, np.int64), size)
        begun = np.asarray(ids[len(ids) + 1 - size :], np.int64)  # what one more token would complete
        scores = scores.copy()
        scores[_scored(every[(every[:, :-1] == begun).all(1), -1], scores)] = -np.inf
        return scores

    return apply


def _least_length(length: int, new_tokens: int, ends: list[int]) -> Processor:
    """No end token before there are `length` ids, `new_tokens` of them the answer's."""

    def apply(scores: np.ndarray, ids: Sequence[int], answered: int) -> np.ndarray:
        if len(ids) >= length and answered >= new_tokens:
            return scores
        scores = scores.copy()
        scores[[token for token in ends if token < scores.size]] = -np.inf
        return scores

    return apply


def _scored(ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Those ids that are tokens of the model; what stands for a query token need not be one."""
    return ids[(ids >= 0) & (ids < len(scores))]
