"""A ratio is chosen where the loss is within the budget with confidence, on halves that share no image."""

from dataclasses import replace

import numpy as np
import pytest

from catp.calibration.accuracy.settings import Setting
from catp.calibration.data.dataset import Question
from catp.calibration.ratio.search import Drop, Measured, half, images_needed, measure, unseen_losses
from catp.export.demo import scenes
from catp.runtime import CatpError, Pipeline


def questions(count: int, seed: int = 5) -> list[Question]:
    return [
        Question(
            str(i), e.image, e.question.prompt[len("Question: ") : -len(" Answer:")], (e.question.answer,), "x", str(i)
        )
        for i, e in enumerate(scenes.examples(count, seed))
    ]


def test_halves_share_no_image() -> None:
    asked = [Question(str(i), scenes.examples, "?", ("a",), "x", str(i // 4)) for i in range(400)]  # type: ignore[arg-type]
    search, confirmation = (list(half(asked, 3, which)) for which in ("search", "confirmation"))  # type: ignore[arg-type]
    assert len(search) + len(confirmation) == 400 and 120 < len(search) < 280
    assert not {q.image_key for q in search} & {q.image_key for q in confirmation}
    assert [q.id for q in half(asked, 4, "search")] != [q.id for q in search]


def drop(ratio: float, low: float, accuracy: float = 0.9, method: str = "catp") -> Drop:
    return Drop(Setting(method, "original", ratio), 100, accuracy, low / 2, low)


def test_the_largest_ratio_within_the_budget_is_best() -> None:
    measured = Measured(
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


def test_few_losses_do_not_make_sure() -> None:
    """At most 5 % of all draws confirm a setting that loses more than the budget."""
    rng = np.random.default_rng(0)
    images = [str(i) for i in range(250)]
    for expected_losses in (2, 4.05, 7.05):
        rate = expected_losses / 250
        confirmed = 0
        for _ in range(400):
            differences = -(rng.random(250) < rate).astype(float)
            low = differences.mean() - unseen_losses(differences, images)
            confirmed += low >= -0.999 * rate
        assert confirmed <= 0.05 * 400


def test_images_needed_without_a_loss() -> None:
    for budget in (0.01, 0.05, 0.2):
        needed = images_needed(budget)
        images = [str(i) for i in range(needed)]
        assert unseen_losses(np.zeros(needed), images) <= budget + 1e-12
        assert unseen_losses(np.zeros(needed - 1), images[:-1]) > budget
