"""Greedy generation as the graph chooses: of a step, nothing but the next tokens comes to the host.

Scores that are not finite have to be noticed all the same. What is NaN once in a row stays: its keys and values are in
the cache that every later token reads. So the scores are looked at where an answer begins and where it ends, and
wherever token 0 is chosen, which is what the highest of nothing but NaN comes out as; all other steps cost nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from catp.runtime.errors import GraphError
from catp.runtime.generation.finite import check_finite
from catp.runtime.generation.stopping import Answers
from catp.runtime.language_models.base import Decoding

OF_NAN = 0
"""Index of the highest among NaN."""


def generate_greedily(decoding: Decoding, answers: Answers) -> Iterator[None]:
    """Fill `answers`; yields whenever each running row has one token more.

    Raises:
        GraphError: scores are not finite, or a token is none of the vocabulary.
    """
    tokens = decoding.prefill()
    looked_at = np.ones(len(tokens), bool)
    while True:
        chosen = tokens.tolist()
        if min(chosen) < 0 or max(chosen) >= decoding.vocabulary:
            wrong = min(chosen) if min(chosen) < 0 else max(chosen)
            raise GraphError(decoding.graph, f"its next token is {wrong}, of a vocabulary of {decoding.vocabulary}")
        before = answers.running.copy()
        answers.append(tokens)
        ended = before != answers.running
        if looked_at.any() or ended.any() or OF_NAN in chosen:
            check_finite(decoding.graph, decoding.logits(), before & (looked_at | ended | (tokens == OF_NAN)))
            looked_at[:] = False
        yield
        if not answers.running.any():
            return
        tokens = decoding.step(tokens)
