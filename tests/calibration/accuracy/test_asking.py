from pathlib import Path

import pytest

from catp.calibration.accuracy.asking import Asking
from catp.calibration.data import VqaExample
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.generation_settings import GREEDY

QUESTION = VqaExample("7", Path("a"), "is {it} red?", ("no",), "other", "a")
DRAWN = GREEDY.override(do_sample=True, temperature=0.5)


def test_the_question_stands_where_the_template_says(pipeline: Pipeline) -> None:
    manifest = pipeline.manifest
    assert Asking().prompt(manifest, QUESTION) == QUESTION.prompt == "Question: is {it} red? Answer:"
    given = Asking("{a} {question} Short answer:")
    assert given.prompt(manifest, QUESTION) == "{a} is {it} red? Short answer:"
    assert Asking().in_full(manifest) == "Question: {question} Answer:"
    assert Asking().in_full(manifest.model_copy(update={"vote": None})) == "{question}"
    assert Asking("{question}").in_full(manifest) == "{question}"


@pytest.mark.parametrize(
    ("template", "tokens", "least", "message"),
    [
        ("what?", None, 0, "it has {question} 0 times; give it once"),
        ("", None, 0, "0 times"),
        ("{question} {question}", None, 0, "2 times"),
        (None, 0, 0, "max new tokens 0: at least 1"),
        (None, 1 << 30, 0, "at most 16,777,216"),
        (None, 3, 4, "min new tokens 4: more than max new tokens, 3"),
    ],
)
def test_what_asks_nothing_is_refused(template: str | None, tokens: int | None, least: int, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Asking(template, GREEDY.override(min_new_tokens=least), tokens)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_beams_are_rows_and_drawn_answers_go_alone() -> None:
    assert Asking().rows(8) == 8
    assert [Asking(generation=GREEDY.override(num_beams=beams)).rows(8) for beams in (2, 3, 8, 9)] == [4, 2, 1, 1]
    assert Asking(generation=DRAWN).rows(8) == 1


def test_drawn_tokens_depend_on_seed_and_question_alone() -> None:
    asking = Asking(generation=DRAWN)
    found = [asking.settings(seed, id).seed for seed, id in ((1, "7"), (1, "7"), (2, "7"), (1, "8"))]
    assert found[0] == found[1] and len(set(found)) == 3 and None not in found
    assert asking.settings(1, "7").override(seed=0) == DRAWN.override(seed=0)
    beams = GREEDY.override(num_beams=3)
    assert Asking(generation=beams).settings(1, "7") == beams
