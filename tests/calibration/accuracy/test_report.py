import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from catp.calibration.accuracy.predictions import Evaluation, Prediction
from catp.calibration.accuracy.report import NAMED, AccuracyReport, make_report
from catp.calibration.accuracy.statistics import bootstrap_interval, mean_difference, wilson_interval
from catp.calibration.accuracy.tables import difference_table, score_table, type_table
from catp.calibration.significance.comparisons import describe_p
from catp.calibration.significance.holm import holm
from catp.calibration.significance.mcnemar import mcnemar_exact
from catp.calibration.significance.sign_flips import sign_flip_test
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
    assert found.p_value == sign_flip_test(RIGHT[:, 4] - RIGHT[:, 3], 1, images)


def test_what_pruning_costs_is_compared_with_the_lowest_ratio(pipeline: Pipeline) -> None:
    made = report(pipeline, predictions())
    rows = [(loss.method, loss.ratio, loss.keep_mass, loss.against_ratio) for loss in made.losses]
    assert rows == [
        ("catp", 0.5, None, 0), ("coverage", 0.5, None, 0), ("random", 0.5, None, 0),
        ("catp", None, 0.8, 0), ("coverage", None, 0.8, 0),
    ]  # fmt: skip
    for column, loss in enumerate(made.losses, start=3):
        assert loss.difference == pytest.approx(RIGHT[:, column].mean() - 0.9)
    # Where nothing keeps all, the lowest ratio of each method by itself; at ratio 0 there is nothing to lose.
    both = report(pipeline, predictions(), ratios=(0.6, 0.5))
    rows = [(loss.method, loss.ratio, loss.keep_mass, loss.against_ratio) for loss in both.losses]
    assert rows == [("catp", None, 0.8, 0.5), ("coverage", None, 0.8, 0.5)]
    assert both.losses[1].difference == pytest.approx(RIGHT[:, 7].mean() - RIGHT[:, 4].mean())
    assert not report(pipeline, [p.model_copy(update={"num_kept": (32,) * 8}) for p in predictions()]).losses


def test_all_comparisons_of_a_report_are_corrected_together(pipeline: Pipeline) -> None:
    made = report(pipeline, predictions())
    every = [*made.differences, *made.losses]
    assert (made.test, made.comparisons, len(every)) == ("sign flips by image", 8, 8)
    assert [found.p_corrected for found in every] == holm([found.p_value or 0 for found in every])
    assert {found.finding for found in every} == {"difference shown", "no difference shown"}
    for found in every:
        assert (found.finding == "difference shown") == ((found.p_corrected or 0) < 0.05)


def test_noise_is_no_win_and_a_win_is_one(pipeline: Pipeline) -> None:
    right = RIGHT.copy()
    right[:, 3] = 0.3
    right[:, 4] = 0.3 + 0.6 * (np.arange(40) < 20)  # better at half of the questions
    right[:, 5] = 0.3 + np.where(np.arange(40) % 4 < 2, 0.3, -0.3)  # as often better as worse
    found = {(d.method, d.against): d.finding for d in report(pipeline, predictions(right)).differences}
    assert found["coverage", "catp"] == "difference shown" and found["catp", "random"] == "no difference shown"


def test_exact_matches_on_images_of_their_own_have_wilsons_interval(pipeline: Pipeline) -> None:
    right = (RIGHT > 0.5).astype(float)
    made = report(pipeline, predictions(right, per_image=1), metric="exact match")
    assert made.interval == "Wilson"
    assert made.scores[0].interval_95 == wilson_interval(40, 40)
    assert made.test == "McNemar's exact test"
    better, worse = ((right[:, 4] > right[:, 3]).sum(), (right[:, 4] < right[:, 3]).sum())
    (found,) = (d for d in made.differences if (d.method, d.against) == ("coverage", "catp"))
    assert found.p_value == mcnemar_exact(int(better), int(worse)) < 1
    shared = report(pipeline, predictions(right, per_image=2), metric="exact match")
    assert (shared.interval, shared.test) == ("bootstrap over images", "sign flips by image")


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
    assert (nothing.questions, nothing.scores, nothing.differences, nothing.losses) == (0, (), (), ())
    assert (nothing.test, nothing.comparisons) == (None, 0)


def test_the_json_says_what_was_measured(pipeline: Pipeline) -> None:
    made = report(pipeline, predictions())
    content = json.loads(made.model_dump_json())
    assert content["schema_version"] == 1
    assert content["evaluation"]["bundle"] == "00" and content["evaluation"]["seed"] == 1
    assert set(content["scores"][0]) == {
        "method", "positions", "ratio", "keep_mass", "tokens_kept", "questions", "accuracy", "interval_95",
        "by_answer_type", "cider", "cider_interval_95",
    }  # fmt: skip
    assert content["scores"][0]["cider"] is None  # of captions alone
    assert AccuracyReport.model_validate_json(made.model_dump_json()) == made


def test_tables_have_a_row_for_what_differs(pipeline: Pipeline) -> None:
    made = report(pipeline, predictions())
    types, differences = type_table(made), difference_table(made)
    assert types is not None and differences is not None
    # All tokens once, then three methods at 0.5 and two by keep mass.
    assert (score_table(made).row_count, types.row_count, differences.row_count) == (6, 6, 5)
    one = report(pipeline, [p.model_copy(update={"answer_type": "x"}) for p in predictions()])
    assert type_table(one) is None


def printed(table: Table | None) -> list[list[str]]:
    """The cells of each row, and what is below the table last."""
    console = Console(width=200, record=True, file=io.StringIO())
    assert table is not None
    console.print(table)
    lines = console.export_text().splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if "│" in line]
    return [*rows, [lines[-1].strip()]]


def test_the_table_says_which_differences_are_none(pipeline: Pipeline) -> None:
    made = report(pipeline, predictions())
    *rows, (below,) = printed(difference_table(made))
    assert [row[:3] for row in rows] == [
        ["catp", "0.5", "original"], ["coverage", "0.5", "original"], ["random", "0.5", "original"],
        ["catp", "mass 0.8", "original"], ["coverage", "mass 0.8", "original"],
    ]  # fmt: skip
    cells = {("coverage", "ratio 0"): rows[1][3], ("coverage", "catp"): rows[1][4], ("catp", "random"): rows[0][5]}
    assert rows[0][4] == rows[2][4] == rows[2][5] == "" and rows[4][3] and rows[4][4] == ""
    found = {(d.method, d.against): d for d in made.differences}
    found |= {(loss.method, "ratio 0"): loss for loss in made.losses if loss.ratio}  # type: ignore[dict-item]
    for key, cell in cells.items():
        assert cell.startswith(f"{100 * found[key].difference:+.1f} (")
        assert ("none (p" in cell) == (found[key].finding == "no difference shown")
        assert describe_p(found[key].p_corrected or 0) in cell
    assert "none (p" in cells["coverage", "catp"] and "none" not in cells["coverage", "ratio 0"]
    assert below.startswith(
        "none: no difference shown, as p is not below 0.05; by sign flips by image, p corrected for 8 "
    )


def test_a_report_without_tests_can_be_read(pipeline: Pipeline) -> None:
    """As older ones are, which are kept beside the demo."""
    content = json.loads(report(pipeline, predictions()).model_dump_json())
    for field in ("losses", "test", "comparisons"):
        del content[field]
    for difference in content["differences"]:
        for field in ("p_value", "p_corrected", "finding"):
            del difference[field]
    read = AccuracyReport.model_validate(content)
    assert read.differences[0].finding is None and difference_table(read) is None
