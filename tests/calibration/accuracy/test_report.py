import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from catp.calibration.accuracy.predictions import Evaluation, Prediction
from catp.calibration.accuracy.report import NAMED, AccuracyReport, make_report
from catp.calibration.accuracy.statistics import bootstrap_interval, mean_difference, wilson_interval
from catp.calibration.accuracy.tables import difference_table, score_table, type_table
from catp.runtime import Pipeline

EVALUATION = Evaluation(
    bundle="00", provider="cpu", engines=None, data="mine[1].jsonl", metric="VQA accuracy", limit=None, fraction=None,
    seed=1, questions=40, digest="11", methods=("catp", "coverage", "random"), ratios=(0.0, 0.5), keep_masses=(0.8,),
    positions=("original",),
)  # fmt: skip
COLUMNS = ["catp 0", "coverage 0", "random 0", "catp 0.5", "coverage 0.5", "random 0.5", "catp mass", "coverage mass"]
RNG = np.random.default_rng(0)
RIGHT = np.concatenate([np.full((40, 3), 0.9), RNG.choice([0, 0.3, 0.6, 0.9, 1], (40, 5))], axis=1)


def predictions(right: np.ndarray = RIGHT, per_image: int = 2) -> list[Prediction]:
    return [
        Prediction(
            id=str(i),
            image_key=f"image {i // per_image}",
            answer_type="number" if i % 4 == 0 else "other",
            answers=("x",) * len(row),
            num_kept=(32,) * 3 + (16,) * 3 + (8 + i % 2, 4),
            accuracy=tuple(row),
        )
        for i, row in enumerate(right)
    ]


def report(pipeline: Pipeline, found: Sequence[Prediction], **changes: Any) -> AccuracyReport:
    return make_report(EVALUATION.model_copy(update=changes), found, pipeline.manifest)


def test_accuracies_and_intervals_are_those_of_the_questions(pipeline: Pipeline) -> None:
    made = report(pipeline, predictions())
    assert (made.questions, made.images, made.skipped) == (40, 20, 0)
    assert made.interval == "bootstrap over images"
    images = [i // 2 for i in range(40)]
    for column, score in enumerate(made.scores):
        assert score.accuracy == pytest.approx(RIGHT[:, column].mean())
        assert score.interval_95 == bootstrap_interval(RIGHT[:, column], 1, clusters=images)
        number, other = score.by_answer_type["number"], score.by_answer_type["other"]
        assert (number.questions, other.questions) == (10, 30)
        assert number.accuracy == pytest.approx(RIGHT[::4, column].mean())
        assert number.accuracy / 4 + other.accuracy * 3 / 4 == pytest.approx(score.accuracy)
    assert [score.tokens_kept for score in made.scores] == [32, 32, 32, 16, 16, 16, 8.5, 4]
    assert [(s.method, s.ratio, s.keep_mass) for s in made.scores[-2:]] == [
        ("catp", None, 0.8),
        ("coverage", None, 0.8),
    ]


def test_methods_are_compared_question_by_question(pipeline: Pipeline) -> None:
    made = report(pipeline, predictions())
    # Neither at ratio 0, where all are the same, nor by keep mass, where each keeps another number of tokens.
    pairs = {(d.method, d.against): d for d in made.differences}
    assert set(pairs) == {("catp", "random"), ("coverage", "catp"), ("coverage", "random")}
    images = [i // 2 for i in range(40)]
    expected = mean_difference(RIGHT[:, 4], RIGHT[:, 3], 1, clusters=images)
    found = pairs["coverage", "catp"]
    assert (found.ratio, found.positions) == (0.5, "original")
    assert (found.difference, *found.interval_95) == (expected.mean, expected.low, expected.high)
    assert found.is_clear == (expected.low > 0 or expected.high < 0)


def test_noise_is_no_win_and_a_win_is_one(pipeline: Pipeline) -> None:
    right = RIGHT.copy()
    right[:, 3] = 0.3
    right[:, 4] = 0.3 + 0.6 * (np.arange(40) < 20)  # better at half of the questions
    right[:, 5] = 0.3 + np.where(np.arange(40) % 4 < 2, 0.3, -0.3)  # as often better as worse
    clear = {(d.method, d.against): d.is_clear for d in report(pipeline, predictions(right)).differences}
    assert clear["coverage", "catp"] and not clear["catp", "random"]


def test_exact_matches_on_images_of_their_own_have_wilsons_interval(pipeline: Pipeline) -> None:
    right = (RIGHT > 0.5).astype(float)
    made = report(pipeline, predictions(right, per_image=1), metric="exact match")
    assert made.interval == "Wilson"
    assert made.scores[0].interval_95 == wilson_interval(40, 40)
    shared = report(pipeline, predictions(right, per_image=2), metric="exact match")
    assert shared.interval == "bootstrap over images"


def test_few_that_are_all_wrong_are_not_sure_to_be(pipeline: Pipeline) -> None:
    right = RIGHT.copy()
    right[:, 4] = 0
    score = report(pipeline, predictions(right)).scores[4]
    assert score.interval_95 == wilson_interval(0, 20)  # 40 questions about 20 images
    assert score.by_answer_type["number"].interval_95 == wilson_interval(0, 10)


def test_what_was_skipped_counts_nowhere_and_is_named(pipeline: Pipeline) -> None:
    skipped = [Prediction(id=f"s{i}", image_key="b", answer_type="other", error="broken") for i in range(NAMED + 5)]
    made = report(pipeline, [*skipped, *predictions()])
    assert made.scores == report(pipeline, predictions()).scores
    assert made.skipped == NAMED + 5 and len(made.skipped_first) == NAMED
    assert (made.skipped_first[0].id, made.skipped_first[0].reason) == ("s0", "broken")
    nothing = report(pipeline, skipped)
    assert (nothing.questions, nothing.scores, nothing.differences) == (0, (), ())


def test_the_json_says_what_was_measured(pipeline: Pipeline) -> None:
    made = report(pipeline, predictions())
    content = json.loads(made.model_dump_json())
    assert content["schema_version"] == 1
    assert content["evaluation"]["bundle"] == "00" and content["evaluation"]["seed"] == 1
    assert set(content["scores"][0]) == {
        "method", "positions", "ratio", "keep_mass", "tokens_kept", "questions", "accuracy", "interval_95",
        "by_answer_type",
    }  # fmt: skip
    assert AccuracyReport.model_validate_json(made.model_dump_json()) == made


def test_tables_have_a_row_for_what_differs(pipeline: Pipeline) -> None:
    made = report(pipeline, predictions())
    types, differences = type_table(made), difference_table(made)
    assert types is not None and differences is not None
    # All tokens once, then three methods at 0.5 and two by keep mass.
    assert (score_table(made).row_count, types.row_count, differences.row_count) == (6, 6, 2)
    one = report(pipeline, [p.model_copy(update={"answer_type": "x"}) for p in predictions()])
    assert type_table(one) is None
