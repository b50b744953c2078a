import pytest

from catp.calibration.harness.settings import Generating, read_generation
from catp.runtime import UsageError
from catp.runtime.bundle.generation_settings import GREEDY

GQA = {"max_new_tokens": 16, "temperature": 0.0, "top_p": 1.0, "num_beams": 1, "do_sample": False, "until": ["\n\n"]}
DRAWN = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": 8}
ENDS = GREEDY.override(stop_strings=("\n\n",))


def test_a_task_that_asks_for_the_likeliest_tokens_gets_them() -> None:
    assert read_generation(GQA, {}) == Generating(ENDS, 16, 0)
    assert read_generation({"until": None}, {}) == Generating(GREEDY, None, 0)
    assert read_generation({**GQA, "do_sample": True}, {}).settings == ENDS  # at temperature 0
    assert read_generation({**GQA, "temperature": 0.2}, {}).settings == ENDS  # which do_sample makes no use of
    assert read_generation({**GQA, "temperature": None, "top_p": None, "num_beams": None}, {}).settings == ENDS


def test_tokens_are_drawn_where_a_task_says_so() -> None:
    drawn = GREEDY.override(do_sample=True, temperature=0.7, top_p=0.9)
    assert read_generation({**DRAWN, "seed": 3}, {}) == Generating(drawn, 8, 3)
    assert read_generation({"temperature": 0.7, "top_p": 0.9}, {}).settings == drawn
    assert read_generation({"do_sample": True}, {}).settings == GREEDY.override(do_sample=True)


def test_the_run_goes_before_the_task() -> None:
    found = read_generation(GQA, {"num_beams": 5, "length_penalty": -1.0, "max_new_tokens": 4, "seed": 9})
    assert found == Generating(ENDS.override(num_beams=5, length_penalty=-1.0), 4, 9)
    # Of drawing, all of it is the run's: a task's temperature of 0 would undo its do_sample.
    assert read_generation(GQA, {"do_sample": True}).settings == ENDS.override(do_sample=True)
    assert read_generation(GQA, {"temperature": 0.5}).settings == ENDS.override(do_sample=True, temperature=0.5)
    assert read_generation(DRAWN, {"temperature": 0}).settings == GREEDY
    assert read_generation(DRAWN, {"do_sample": False}).settings == GREEDY


def test_stop_strings_have_two_names_and_empty_ones_stop_nothing() -> None:
    assert read_generation({"until": "."}, {}).settings.stop_strings == (".",)
    assert read_generation({"until": ["", "</s>"], "stop_sequences": ["\n"]}, {}).settings.stop_strings == (
        "</s>",
        "\n",
    )
    assert read_generation({"until": []}, {}).settings.stop_strings == ()


def test_settings_of_other_models_are_left_out() -> None:
    others = {"image_aspect_ratio": "original", "max_pixels": 691200, "system_prompt": "", "n": 1, "max_gen_toks": 5}
    assert read_generation({**GQA, **others}, {}) == Generating(ENDS, 16, 0)
    assert read_generation({"max_gen_toks": 5}, {}).max_new_tokens == 5


@pytest.mark.parametrize(
    ("task", "run", "message"),
    [
        ({"penalty_alpha": 0.6}, {}, "task setting penalty_alpha 0.6: unknown; accepted: num_beams, "),
        ({"system_prompt": "Be brief."}, {}, "task setting system_prompt 'Be brief.': unknown"),
        ({"n": 4}, {}, "task setting n 4: one answer is given"),
        ({"until": 3}, {}, "task setting until 3: give texts"),
        ({"num_beams": 0}, {}, "num_beams 0: "),
        ({}, {"length_penalty": -1.0}, "length_penalty -1.0: it is of use in a beam search"),
        ({}, {"top_p": 0.9}, "top_p 0.9: it is of use where tokens are drawn"),
        ({}, {"temperature": 0, "top_k": 4}, "top_k 4: it is of use where tokens are drawn"),
        ({}, {"temperature": -1.0}, "temperature -1.0: "),
    ],
)
def test_what_would_change_nothing_or_is_unknown_is_refused(
    task: dict[str, object], run: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError) as caught:
        read_generation(task, run)
    assert message in str(caught.value) and "\n" not in str(caught.value)
