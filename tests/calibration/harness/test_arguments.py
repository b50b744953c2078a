import pytest

from catp.calibration.harness.arguments import GENERATION, Arguments, read_arguments
from catp.runtime import EncoderWish, UsageError
from catp.runtime.bundle.generation_settings import GenerationSettings


def test_arguments_come_as_the_harness_splits_them() -> None:
    found = read_arguments({"bundle": 7, "ratio": 0.5, "num_beams": 5, "length_penalty": -1.0, "encoder_flops": 0.8})
    assert (found.bundle, found.provider, found.ratio, found.positions) == ("7", "cpu", 0.5, None)
    assert found.generation == {"num_beams": 5, "length_penalty": -1.0}
    assert found.encoder == EncoderWish(flops=0.8)
    assert read_arguments({"bundle": "a"}).encoder == EncoderWish()


def test_quotes_keep_commas_and_are_no_part_of_a_text() -> None:
    given = {"bundle": "a", "prompt_template": '"In short, {text} Answer:"', "early_stopping": "'never'"}
    found = read_arguments(given)
    assert (found.prompt_template, found.early_stopping) == ("In short, {text} Answer:", "never")
    assert read_arguments({"bundle": "a", "prompt_template": '"'}).prompt_template == '"'


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "model argument bundle: missing; give --model_args bundle=FOLDER"),
        ({"ration": 0.5}, "model argument ration: unknown; accepted: bundle, provider, "),
        ({"ratio": "half"}, "model argument ratio 'half': "),
        ({"positions": "old"}, "model argument positions 'old': "),
        ({"seed": -1}, "model argument seed -1: "),
        ({"max_new_tokens": 0}, "model argument max_new_tokens 0: "),
        ({"prompt_template": "{question}?"}, "it has {question}; give {text} once"),
        ({"prompt_template": "{text} {text}"}, "it has {text}, {text}; give {text} once"),
    ],
)
def test_what_cannot_be_used_is_named_in_one_line(given: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_arguments({"bundle": "a", **given} if given else given)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_every_setting_of_an_answer_can_be_given() -> None:
    ways_of_stopping = {"stop_strings", "max_length", "min_length"}  # tasks say those; the others are older names
    assert {*GENERATION} == {*GenerationSettings.model_fields, "max_new_tokens"} - ways_of_stopping
    assert {*GENERATION} <= {*Arguments.model_fields}
