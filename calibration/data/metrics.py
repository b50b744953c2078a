"""How right an answer is, by the measure that a data set asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from catp.calibration.data.vqa_accuracy import vqa_accuracy

Metric = Literal["exact match", "VQA accuracy", "recall at 1", "same best text"]
"""The last two are of a search: no answer alone is right or wrong."""


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 for one of the answers, letter by letter, else 0."""
    return float(prediction in answers)


JUDGES: dict[Metric, Callable[[str, Sequence[str]], float]] = {
    "exact match": exact_match,
    "VQA accuracy": vqa_accuracy,
}
"""Prediction and answers to a number from 0 to 1."""
