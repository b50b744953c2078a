"""Two bundles on the same questions: by hand, and a bundle against itself."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from catp.calibration.precision import comparison
from catp.calibration.precision.comparison import (
    BundleAnswers,
    accuracy_changes,
    ask,
    kept_overlap,
    no_answers,
    patch_overlap,
)
from catp.runtime import CatpError, Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.manifest import PruningSpec


def answers(accuracy: list[list[float]], kept: list[list[int]], images: tuple[str, ...] | None = None) -> BundleAnswers:
    """accuracy: by ratio, of every question."""
    found = np.array(accuracy).T
    return BundleAnswers(
        (0.0, 0.5)[: len(accuracy)], images or tuple(map(str, range(len(found)))), found, np.array(kept)
    )


def test_kept_overlap_by_hand() -> None:
    one = answers([[1, 1]], [[0, 1, 2, 3], [4, 5, 6, 7]])
    assert kept_overlap(one, one) == 1
    assert kept_overlap(one, answers([[1, 1]], [[0, 1, 2, 3], [4, 5, 6, 31]])) == 7 / 8
    assert kept_overlap(one, answers([[1, 1]], [[3, 2, 1, 0], [8, 9, 10, 11]])) == 1 / 2
    assert kept_overlap(one, answers([[1, 1]], [[4, 5, 6, 7], [0, 1, 2, 3]])) == 0
    with pytest.raises(ValueError):
        kept_overlap(one, answers([[1, 1]], [[0, 1, 2, 3]]))


def test_what_is_no_number_keeps_nothing_alike() -> None:
    one = answers([[1, 1]], [[0, 1, 2, 3], [4, 5, 6, 7]])
    broken = answers([[1, 1]], [[0, 1, 2, 3], [-1, -1, -1, -1]])
    assert kept_overlap(one, broken) == kept_overlap(broken, one) == kept_overlap(broken, broken) == 1 / 2
    nothing = no_answers(one)
    assert kept_overlap(one, nothing) == 0 and not nothing.accuracy.any() and nothing.images == one.images
    assert [change.difference for change in accuracy_changes(one, nothing, 0)] == [-1]


def test_patch_overlap_by_hand() -> None:
    one = answers([[1, 1]], [[0], [1]])
    assert patch_overlap(one, one) is None  # encoders that prune nothing
    first = replace(one, patches=(np.array([3, 5, 7, 9]), np.array([1, 2])))
    second = replace(one, patches=(np.array([9, 7, 5, 8, 11]), np.array([2])))  # counts may differ too
    assert patch_overlap(first, first) == 1
    assert patch_overlap(first, second) == (3 / 4 + 1 / 2) / 2
    assert patch_overlap(second, first) == (3 / 5 + 1) / 2
    assert patch_overlap(first, no_answers(first)) == 0


def test_accuracy_changes_by_hand() -> None:
    right = [1.0] * 20
    one_lost = [0.0] + [1.0] * 19
    before, after = answers([right, one_lost], [[0]] * 20), answers([one_lost, right], [[0]] * 20)
    at_all, at_half = accuracy_changes(before, after, seed=0)
    assert (at_all.ratio, at_all.before, at_all.after) == (0.0, 1.0, 0.95)
    assert (at_half.ratio, at_half.before, at_half.after) == (0.5, 0.95, 1.0)
    assert at_all.difference == pytest.approx(-0.05) and at_half.difference == pytest.approx(0.05)
    # One of 20: Wilson's interval is 0.9 to 23.6 %; none of 20: up to 16.1 %. So as far beyond the difference.
    assert at_all.interval_95[0] == pytest.approx(-0.236, abs=1e-3)
    assert at_all.interval_95[1] == pytest.approx(-0.05 + 0.161, abs=1e-3)
    assert at_half.interval_95 == pytest.approx((-at_all.interval_95[1], -at_all.interval_95[0]))
    (same,) = accuracy_changes(answers([right], [[0]] * 20), answers([right], [[0]] * 20), seed=3)
    assert same.difference == 0 and same.interval_95 == pytest.approx((-0.161, 0.161), abs=1e-3)


def test_questions_about_one_image_are_lost_together() -> None:
    before, after = [1.0] * 40, [0.0] * 8 + [1.0] * 32
    kept = [[0]] * 10
    (alone,) = accuracy_changes(answers([before], kept), answers([after], kept), seed=0)
    images = tuple(str(i // 4) for i in range(40))
    (by_image,) = accuracy_changes(answers([before], kept, images), answers([after], kept, images), seed=0)
    assert alone.difference == by_image.difference == pytest.approx(-0.2)
    assert by_image.interval_95[0] < alone.interval_95[0] - 0.05  # ten images, not forty questions


def test_tested_ratios() -> None:
    def of(method: str, ratio: float) -> tuple[float, ...]:
        return comparison.tested_ratios(PruningSpec(method=method, ratio=ratio, num_query_tokens=32))  # type: ignore[arg-type]

    assert (of("catp", 0.25), of("catp", 0.0), of("none", 0.0)) == ((0.0, 0.25), (0.0, 0.5), (0.0,))


def test_answers_are_those_of_asking_one_by_one(
    demo_bundle: Path, pipeline: Pipeline, questions: Callable, tmp_path: Path
) -> None:
    asked = questions(14)
    wrong = replace(asked[2], answers=("nothing of the kind",))
    unreadable = replace(asked[5], image=tmp_path / "missing.png", image_key="missing")
    advanced: list[int] = []
    found = ask(demo_bundle, [*asked[:2], wrong, unreadable, *asked[6:]], "exact match", 0, 4, advanced.append)
    ratio = open_bundle(demo_bundle, verify=False).manifest.pruning.ratio
    assert found.ratios == (0.0, ratio) and advanced == [4, 4, 4]
    left = [*asked[:2], wrong, *asked[6:]]
    assert found.images == tuple(question.image_key for question in left)
    for row, question in enumerate(left):
        all_tokens, pruned = (pipeline.generate([question.image], [question.prompt], r)[0] for r in (0.0, ratio))
        assert found.accuracy[row].tolist() == [float(a.answer == question.answers[0]) for a in (all_tokens, pruned)]
        assert sorted(found.kept[row]) == pruned.kept_indices
    assert found.accuracy[2].tolist() == [0, 0] and found.accuracy[:, 0].sum() >= 10

    again = ask(demo_bundle, left, "exact match", 0, 4, lambda _: None)
    assert kept_overlap(found, again) == 1
    assert [change.difference for change in accuracy_changes(found, again, 0)] == [0, 0]


def test_patches_are_those_that_leave_the_encoder(pruned_bundle: Path, questions: Callable) -> None:
    asked = questions(5)
    found = ask(pruned_bundle, asked, "exact match", 0, 4, lambda _: None)
    alone = Pipeline.load(pruned_bundle, provider="cpu")
    assert found.patches is not None and len(found.patches) == 5
    for question, patches in zip(asked, found.patches):
        kept = alone.generate([question.image], [question.question])[0].kept_indices
        assert sorted(1 + patches) == kept[1:] and kept[0] == 0


def test_nothing_that_can_be_asked_is_an_error(demo_bundle: Path, questions: Callable, tmp_path: Path) -> None:
    unreadable = [replace(question, image=tmp_path / "missing.png") for question in questions(2)]
    with pytest.raises(CatpError, match="none of the questions could be asked"):
        ask(demo_bundle, unreadable, "exact match", 0, 4, lambda _: None)
