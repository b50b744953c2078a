"""Greedy generation as the graph chooses: of a step, nothing but the next tokens comes to the host."""

from __future__ import annotations

from collections.abc import Iterator

from catp.runtime.generation.stopping import Answers
from catp.runtime.language_models.base import Decoding


def generate_greedily(decoding: Decoding, answers: Answers) -> Iterator[None]:
    """Fill `answers`; yields whenever each running row has one token more."""
    tokens = decoding.prefill()
    answers.append(tokens)
    yield
    while answers.running.any():
        tokens = decoding.step(tokens)
        answers.append(tokens)
        yield
