"""The search itself, on probabilities that can be gone through by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.generation.beams import generate_with_beams
from catp.runtime.generation.stopping import Answers, Ending


class Always:
    """A model whose next token is as likely as always."""

    graph = "language_model"

    def __init__(self, probabilities: list[float], beams: int) -> None:
        self.logits, self.beams = np.log(np.array(probabilities, np.float32)), beams

    def prefill(self) -> np.ndarray:
        return self.logits[None]

    def step(self, tokens: np.ndarray) -> np.ndarray:
        return np.tile(self.logits, (self.beams, 1))

    def reorder(self, parents: np.ndarray) -> None:
        pass


def search(probabilities: list[float], ends: set[int], limit: int, **settings: Any) -> list[int]:
    chosen = GREEDY.override(**settings)
    answers = Answers([[9]], np.array([limit]), Ending(frozenset(ends)))
    for _ in generate_with_beams(Always(probabilities, chosen.num_beams), answers, chosen, ()):  # type: ignore[arg-type]
        pass
    return answers.token_ids[0]


def best(probabilities: list[float], ends: set[int], limit: int, penalty: float) -> list[int]:
    """Of all answers there are, the one with the highest score."""
    going_on = [token for token in range(len(probabilities)) if token not in ends]
    every = [
        [*before, last]
        for length in range(1, limit + 1)
        for before in itertools.product(going_on, repeat=length - 1)
        for last in (range(len(probabilities)) if length == limit else ends)
    ]
    return max(every, key=lambda ids: np.log([probabilities[token] for token in ids]).sum() / len(ids) ** penalty)


@pytest.mark.parametrize("penalty", [2.0, 1.0, 0.0, -1.0])
def test_a_search_that_never_stops_early_finds_the_best(penalty: float) -> None:
    """Also where it has as many answers as beams long before."""
    for probabilities in ([0.06, 0.04, 0.9], [0.3, 0.1, 0.6], [0.1, 0.7, 0.2]):
        settings: dict[str, Any] = {"num_beams": 4, "length_penalty": penalty, "early_stopping": "never"}
        assert search(probabilities, {0, 1}, 6, **settings) == best(probabilities, {0, 1}, 6, penalty)


def test_a_search_that_stops_early_ends_with_as_many_answers_as_beams() -> None:
    settings: dict[str, Any] = {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True}
    assert search([0.06, 0.04, 0.9], {0, 1}, 6, **settings) == [2, 0]
    assert best([0.06, 0.04, 0.9], {0, 1}, 6, 2.0) == [2] * 6


def test_beams_go_on_though_every_end_token_is_likelier() -> None:
    probabilities, ends = [0.3, 0.25, 0.2, 0.1, 0.09, 0.06], {0, 1, 2}
    settings: dict[str, Any] = {"num_beams": 2, "length_penalty": 9.0, "early_stopping": "never"}
    assert search(probabilities, ends, 4, **settings) == best(probabilities, ends, 4, 9.0) == [3, 3, 3, 0]


def test_one_answer_is_enough_where_none_follows() -> None:
    """A penalty that leaves all but the shortest below what stands for none."""
    assert search([0.1, 0.9], {0}, 6, num_beams=2, length_penalty=-30.0) == [0]
