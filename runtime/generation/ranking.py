"""Given answers by their likelihood, as BLIP's official evaluation of visual question answering ranks them.

The decoder's first step gives every answer the probability of its first token. The k likeliest by that are read token
by token, and an answer's score is the sum over its tokens and the end token of (1 - e) log p(token) + e mean log p, the
negated cross-entropy with label smoothing e = 0.1, whatever its length. As https://github.com/salesforce/BLIP does it
(`rank_answer` in models/blip_vqa.py), but for two things: no padding of a question is read, so that a score does not
depend on the other questions, and of answers with equally likely first tokens those given first are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from catp.runtime.errors import UsageError
from catp.runtime.generation.failures import stage_named
from catp.runtime.generation.finite import check_finite
from catp.runtime.language_models.base import Batch
from catp.runtime.language_models.encoder_decoder import EncoderDecoder, EncoderDecoderDecoding
from catp.runtime.language_models.inputs import check_vocabulary

SMOOTHING = 0.1
"""Share of the target that is spread over the whole vocabulary, in training as in ranking."""

K = 128
"""Answers that are read to their end."""

ROWS = 32
"""Answers that the decoder reads side by side, each with a copy of the keys and values of the question."""


@dataclass(frozen=True)
class RankedAnswer:
    """An answer that was given, and how likely it is."""

    answer: str
    score: float  # sum of smoothed log-probabilities, at most 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def rank(
    model: EncoderDecoder, batch: Batch, candidates: Sequence[Sequence[int]], k: int = K, rows: int = ROWS
) -> list[tuple[int, float]]:
    """The k candidates whose first token is likeliest, best first, each with its score.

    Args:
        batch: one prompt.
        candidates: token ids of each answer, its end token included, without the token that generation begins with.
        rows: read at a time, at most.

    Raises:
        UsageError: `k` or `rows` is less than 1, or the batch does not fit the engine.
        GraphError: scores are not finite.
    """
    for name, number in (("k", k), ("rows", rows)):
        if number < 1:
            raise UsageError(f"{name} {number}: give at least 1")
    check_vocabulary(candidates, model.vocabulary)
    decoding = model.begin(batch, max(len(ids) for ids in candidates), output="logits")
    with stage_named("reading the prompts"):
        logits = decoding.prefill()
        check_finite(decoding.graph, logits, np.array([0]))
    first = _smoothed(logits, np.array([[ids[0] for ids in candidates]]))[0]
    # The smoothing adds the same to all of them, so that the order is that of the probabilities.
    chosen = np.argsort(-first, kind="stable")[:k]
    # Those of one length together: short ones need not wait for long ones.
    by_length = sorted(chosen.tolist(), key=lambda index: len(candidates[index]))
    scores: dict[int, float] = {}
    for start in range(0, len(by_length), rows):
        part = by_length[start : start + rows]
        read = _read(decoding.branch(np.zeros(len(part), np.int64)), [candidates[index] for index in part])
        scores.update(zip(part, first[part] + read))
    return sorted(((index, float(scores[index])) for index in chosen.tolist()), key=lambda found: -found[1])


def _read(decoding: EncoderDecoderDecoding, candidates: Sequence[Sequence[int]]) -> np.ndarray:
    """Sums float64 [R] over all tokens but the first, one candidate a row."""
    lengths = np.array([len(ids) for ids in candidates])
    tokens = np.array([[*ids, *[0] * (lengths.max() - len(ids))] for ids in candidates])
    sums = np.zeros(len(candidates))
    for place in range(1, lengths.max()):
        with stage_named(f"decode step {place}"):
            logits = decoding.step(tokens[:, place - 1])
            running = np.flatnonzero(place < lengths)
            check_finite(decoding.graph, logits, running)
        sums[running] += _smoothed(logits[running], tokens[running, place, None])[:, 0]
    return sums


def _smoothed(logits: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """float64 [R, T]: smoothed log-probabilities of tokens int64 [R, T] by logits float32 [R, V]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    of_tokens = np.take_along_axis(shifted, tokens, axis=1) - total
    return (1 - SMOOTHING) * of_tokens + SMOOTHING * (shifted.mean(axis=1, keepdims=True) - total)
