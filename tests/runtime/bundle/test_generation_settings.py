"""Settings: what is accepted, what is refused by name, and what old bundles say."""

import json
from pathlib import Path
from typing import Any

import pytest

from catp.export.demo import samples
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.generation_settings import GREEDY, GenerationSettings, Overrides
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.providers import open_provider


def test_none_leaves_a_setting_as_it_is() -> None:
    beams = GREEDY.override(num_beams=4, early_stopping="never")
    assert beams.override(num_beams=None, length_penalty=2).num_beams == 4
    assert beams.early_stopping == "never" and GREEDY.override(early_stopping=1).early_stopping is True
    assert GREEDY.override(stop_strings="end").stop_strings == ("end",)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 0}, "num_beams 0: "),
        ({"temperature": 0.0}, "temperature 0.0: "),
        ({"top_p": 1.5}, "top_p 1.5: "),
        ({"top_p": -0.1}, "top_p -0.1: "),
        ({"top_k": -1}, "top_k -1: "),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0: "),
        ({"length_penalty": float("nan")}, "length_penalty nan: "),
        ({"early_stopping": "soon"}, "early_stopping 'soon': "),
        ({"stop_strings": ("a", "")}, "one is empty"),
        ({"penalty_alpha": 0.6}, "'penalty_alpha': unknown; accepted: do_sample, "),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        GREEDY.override(**given)
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.5}, "temperature 0.5: it is of use where tokens are drawn"),
        ({"seed": 0}, "seed 0: "),
        ({"top_k": 5, "num_beams": 2}, "top_k 5: "),
        ({"length_penalty": 2.0, "do_sample": True}, "length_penalty 2.0: it is of use in a beam search"),
        ({"early_stopping": False}, "early_stopping False: "),
    ],
)
def test_what_would_change_nothing_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        GREEDY.asked_for(**given)
    assert message in str(raised.value)
    assert GREEDY.override(**given) == GREEDY.asked_for(**{"do_sample": True, "num_beams": 2, **given}).override(
        do_sample=given.get("do_sample", False), num_beams=given.get("num_beams", 1)
    )  # a checkpoint's configuration may have them all the same


def test_they_are_described_by_what_is_unusual() -> None:
    assert GREEDY.describe() == "greedy"
    assert GREEDY.override(num_beams=5, length_penalty=0).describe() == "num_beams 5, length_penalty 0.0"


def test_keywords_are_the_settings() -> None:
    assert set(Overrides.__annotations__) == set(GenerationSettings.model_fields)


def test_a_bundle_of_before_is_greedy(pipeline: Pipeline) -> None:
    content = json.loads(pipeline.manifest.model_dump_json())
    del content["generation"], content["text"]["image_token_id"]
    assert Manifest.model_validate(content).generation == GREEDY


def test_a_bundle_s_own_settings_are_the_default(pipeline: Pipeline, demo_bundle: Path) -> None:
    sample = samples()[0]
    manifest = pipeline.manifest.model_copy(update={"generation": GREEDY.override(min_new_tokens=6)})
    own = Pipeline(Bundle(demo_bundle, manifest), open_provider("cpu"))
    wanted = pipeline.generate([sample.image], [sample.prompt], min_new_tokens=6)[0].token_ids
    usual = pipeline.generate([sample.image], [sample.prompt])[0].token_ids
    assert own.generate([sample.image], [sample.prompt])[0].token_ids == wanted != usual
    assert own.generate([sample.image], [sample.prompt], min_new_tokens=0)[0].token_ids == usual
    assert own.generate([sample.image], [sample.prompt], settings=GREEDY)[0].token_ids == usual
    assert "".join(own.stream(sample.image, sample.prompt)) == own.detokenize(wanted)


def test_lengths_that_leave_nothing(pipeline: Pipeline) -> None:
    for length in (40, 44):
        with pytest.raises(UsageError, match=f"max_length {length}: image and prompt alone have 44 tokens"):
            pipeline.generate([samples()[0].image], [samples()[0].prompt], max_length=length)
    assert len(pipeline.generate([samples()[0].image], [samples()[0].prompt], max_length=45)[0].token_ids) == 1
