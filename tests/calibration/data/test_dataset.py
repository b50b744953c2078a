from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from catp.calibration.data.dataset import PairList, QuestionList, VqaExample
from catp.calibration.data.easy_vqa import EasyVqa
from catp.runtime import UsageError


def ask(id: int, image: str) -> VqaExample:
    return VqaExample(str(id), Path(image), f"what is {id}?", ("cup",), "other", image)


def ids(questions: QuestionList) -> list[str]:
    return [question.id for question in questions]


def test_questions_about_one_image_stay_together_in_the_order_of_the_set() -> None:
    questions = QuestionList("x", [ask(5, "b"), ask(1, "a"), ask(4, "b"), ask(9, "c"), ask(2, "a")])
    assert ids(questions) == ["5", "4", "1", "2", "9"]


def test_the_prompt_is_blip2s() -> None:
    assert ask(3, "a").prompt == "Question: what is 3? Answer:"
    assert VqaExample("1", Path("a"), "what is {x}?", ("cup",), "other", "a").prompt == "Question: what is {x}? Answer:"


def test_a_subset_is_the_same_for_the_same_seed_and_keeps_the_order() -> None:
    questions = QuestionList("x", [ask(i, f"image {i % 50}") for i in range(200)])
    chosen = ids(questions.subset(None, 0.1, seed=0))
    assert len(chosen) == 20 and len(set(chosen)) == 20
    assert chosen == ids(questions.subset(20, None, seed=0)) != ids(questions.subset(20, None, seed=1))
    assert chosen == [id for id in ids(questions) if id in set(chosen)]
    assert set(chosen) < set(ids(questions.subset(30, None, seed=0)))  # a larger one contains it
    backwards = QuestionList("x", reversed(list(questions)))
    assert set(chosen) == set(ids(backwards.subset(20, None, seed=0)))  # whatever the order of the file
    # Written down, so that no later version draws others.
    assert chosen[:5] == ["110", "61", "111", "164", "68"]


def test_a_subset_draws_from_everywhere() -> None:
    questions = QuestionList("x", [ask(i, str(i)) for i in range(2000)])
    places = [int(id) for id in ids(questions.subset(None, 0.5, seed=3))]
    assert abs(sum(places) / len(places) - 1000) < 60  # mean 1000, standard error 13


@pytest.mark.parametrize(
    ("limit", "fraction", "size"), [(None, None, 25), (7, None, 7), (99, None, 25), (None, 0.1, 3), (None, 0.001, 1)]
)
def test_the_size_of_a_subset(limit: int | None, fraction: float | None, size: int) -> None:
    questions = QuestionList("x", [ask(i, str(i)) for i in range(25)])
    assert len(questions.subset(limit, fraction, seed=0)) == size  # 2.5 rounds up


@pytest.mark.parametrize(
    ("limit", "fraction", "message"),
    [
        (0, None, "at least 1"),
        (None, 0.0, "0 < fraction <= 1"),
        (None, 10.0, "0 < fraction <= 1"),
        (None, float("nan"), "0 < fraction <= 1"),
        (5, 0.1, "give one of them"),
    ],
)
def test_an_impossible_subset_is_refused(limit: int | None, fraction: float | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        QuestionList("x", [ask(1, "a")]).subset(limit, fraction, seed=0)


def test_the_digest_tells_other_questions_and_answers() -> None:
    questions = [ask(1, "a"), ask(2, "b")]
    digest = QuestionList("x", questions).digest()
    assert digest == QuestionList("y", questions).digest()
    for others in (questions[:1], questions[::-1], [ask(1, "b"), ask(2, "b")], [ask(1, "a"), ask(3, "b")]):
        assert QuestionList("x", others).digest() != digest
    assert QuestionList("x", [questions[0], replace(questions[1], answers=("mug",))]).digest() != digest


@pytest.mark.parametrize(
    "kind", [EasyVqa, lambda: PairList("pairs", [ask(i, "image") for i in range(30)])], ids=["easy-vqa", "pairs"]
)
def test_a_subset_is_a_set_of_the_same_kind(kind: Callable[[], QuestionList]) -> None:
    whole = kind()
    part = whole.subset(8, None, seed=0)
    assert type(part) is type(whole) and len(part) == 8
    assert (part.name, part.metric) == (whole.name, "exact match")
    assert set(ids(part)) < set(ids(whole)) and len(list(whole)) > 8
