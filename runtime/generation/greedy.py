"""Greedy generation: each row's most likely token, as the graph chose it."""

from __future__ import annotations

from collections.abc import Callable

from catp.runtime.generation.stopping import Answers
from catp.runtime.language_models.base import Decoding


def generate_greedily(decoding: Decoding, answers: Answers, first_token: Callable[[], None]) -> None:
    """Fill `answers`; `first_token` is called once, when the first tokens are there."""
    tokens = decoding.prefill()
    first_token()
    answers.append(tokens)
    while answers.running.any():
        tokens = decoding.step(tokens)
        answers.append(tokens)
