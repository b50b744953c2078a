"""A ratio is chosen where the loss is within the budget with confidence, on halves that share no image."""

from dataclasses import replace

import numpy as np
import pytest

from catp.calibration.accuracy.settings import Setting
from catp.calibration.data.dataset import VqaExample
from catp.calibration.ratio.search import Drop, MeasuredHalf, measure
from catp.export.demo import scenes
from catp.runtime import CatpError, Pipeline


def questions(count: int, seed: int = 5) -> list[VqaExample]:
    return [
        VqaExample(
            str(i), e.image, e.question.prompt[len("Question: ") : -len(" Answer:")], (e.question.answer,), "x", str(i)
        )
        for i, e in enumerate(scenes.examples(count, seed))
    ]


def drop(ratio: float, low: float, accuracy: float = 0.9, method: str = "catp") -> Drop:
    return Drop(Setting(method, "original", ratio), 100, accuracy, low / 2, low)


def test_the_largest_ratio_within_the_budget_is_best() -> None:
    measured = MeasuredHalf(
        100, 100, 0, 1.0, (drop(0.25, -0.001), drop(0.5, -0.01), drop(0.75, -0.02), drop(0.5, -0.01, 0.95))
    )
    best = measured.best(0.01)
    assert best is not None and best.setting.ratio == 0.5 and best.accuracy == 0.95
    assert measured.best(0.0001) is None
    assert replace(measured, full_accuracy=0.0).best(0.01) is None  # where nothing is right, nothing can be lost
    assert not drop(0.5, float("nan")).is_within(0.5)


def test_measured_losses_are_those_of_answering_one_by_one(pipeline: Pipeline) -> None:
    asked = questions(24)
    settings = [Setting("catp", "original", ratio) for ratio in (0.25, 0.9)]
    measured = measure(pipeline, asked, settings, "exact match", seed=0, batch_size=8)

    def right(ratio: float) -> np.ndarray:
        return np.array([pipeline.generate([q.image], [q.prompt], ratio)[0].answer == q.answers[0] for q in asked])

    assert (measured.questions, measured.images, measured.skipped) == (24, 24, 0)
    assert measured.full_accuracy == right(0).mean()
    for found, ratio in zip(measured.drops, (0.25, 0.9)):
        assert found.accuracy == pytest.approx(right(ratio).mean())
        assert found.difference == pytest.approx(right(ratio).mean() - right(0).mean())
        assert found.low <= found.difference
    assert not measured.drops[1].is_within(0.2)


def test_nothing_to_ask_is_an_error(pipeline: Pipeline) -> None:
    with pytest.raises(CatpError, match=r"none of 0 questions .* ask about more pictures"):
        measure(pipeline, [], [Setting("catp", "original", 0.5)], "exact match", 0, 8)
