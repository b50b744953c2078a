"""From options of catp-export to the pruning of an encoder."""

from __future__ import annotations

import math
from typing import Any

import pytest
from transformers import BlipConfig

from catp.export.image_encoders.plan import (
    EncoderOptions,
    TextEncoderSizes,
    plan_pruning,
    plan_text_pruning,
    text_share,
)
from catp.runtime import UsageError

QUESTION = TextEncoderSizes(layers=3)


def config(**vision: Any) -> BlipConfig:
    sizes = {"image_size": 96, "patch_size": 8, "hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 6}
    return BlipConfig(vision_config={**sizes, **vision})


def test_a_checkpoint_with_a_dictionary_is_pruned_by_it() -> None:
    spec = plan_pruning(EncoderOptions(flops=0.5), config(), has_dictionary=True, temperature=0.75)
    assert (spec.rule, spec.merge, spec.form, spec.layers) == ("madtp", "one", "schedule", (0, 1, 2, 3, 4, 5))
    assert spec.kept_tokens is not None and spec.gflops_pruned == pytest.approx(spec.gflops(spec.kept_tokens))
    assert spec.gflops_pruned / spec.gflops_dense == pytest.approx(0.5, abs=0.02)


def test_one_without_is_pruned_by_cls() -> None:
    spec = plan_pruning(EncoderOptions(flops=0.5), config(), has_dictionary=False, temperature=None)
    assert (spec.rule, spec.merge) == ("cls", "nearest")


def test_the_dynamic_form_takes_the_temperature_of_the_checkpoint() -> None:
    spec = plan_pruning(EncoderOptions(form="dynamic"), config(), has_dictionary=True, temperature=0.75)
    assert (spec.form, spec.temperature, spec.kept_tokens, spec.source) == ("dynamic", 0.75, None, "checkpoint")
    question = plan_text_pruning(EncoderOptions(form="dynamic"), spec, QUESTION, guided=True, counts=True)
    assert question is not None and (question.form, question.temperature) == ("dynamic", 0.75)
    # Texts that are scored stay whole in that form.
    assert plan_text_pruning(EncoderOptions(form="dynamic"), spec, QUESTION, guided=True, counts=False) is None


def test_questions_are_pruned_only_where_it_is_asked_for() -> None:
    spec = plan_pruning(EncoderOptions(flops=0.5), config(), has_dictionary=True, temperature=None)
    assert plan_text_pruning(EncoderOptions(flops=0.5), spec, QUESTION, guided=True, counts=True) is None
    asked = EncoderOptions(flops=0.5, text_flops=0.7)
    found = plan_text_pruning(asked, spec, QUESTION, guided=True, counts=True)
    assert found is not None and found.fraction is not None and found.rule == "madtp"
    without = plan_text_pruning(asked, spec, QUESTION, guided=False, counts=True)
    assert without is not None and without.rule == "self-cls"
    # Of a question of 16 tokens: what comes in, and what is left with the first and the merged one, layer by layer.
    own, work = 15, 0.0
    for _ in range(3):
        kept = math.ceil(round(own * found.fraction, 6))
        left = kept + 1 if kept <= own - 2 else own
        work += (4 * (1 + own) + 10 * (1 + left)) / (14 * 16 * 3)
        own = left
    assert work == pytest.approx(0.7, abs=0.04) and own < 15
    with pytest.raises(UsageError, match="of a text of 16 tokens"):
        plan_text_pruning(EncoderOptions(flops=0.5, text_flops=0.01), spec, QUESTION, guided=True, counts=True)


def test_the_work_of_a_causal_text_encoder_is_counted_with_both_ends() -> None:
    # Of 14 words half are kept, and one token of the others; then half of these eight, and one.
    come_in, left = 2 + 14, 2 + 8
    first = 4 * come_in + 8 * left
    second = 4 * left + 8 * (2 + 5)
    found = text_share(0.5, TextEncoderSizes(layers=2, fixed=2, reads=0))
    assert found == pytest.approx((first + second) / (2 * 12 * 16))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "best"}, "encoder pruning 'best': unknown; accepted: none, madtp"),
        ({"rule": "none", "flops": 0.5}, "--encoder-pruning none: it keeps every token"),
        ({"flops": 0.0}, "--encoder-flops 0: a share of the encoder's work, above 0 and below 1"),
        ({"flops": 1.0}, "--encoder-flops 1: a share"),
        ({"flops": 0.5, "form": "dynamic"}, "leave out --encoder-flops and --encoder-kept"),
        ({"temperature": 0.5}, "--encoder-temperature: it is for --encoder-form dynamic"),
        ({"form": "dynamic", "temperature": -1.0}, "--encoder-temperature -1: give a number from 1e-06"),
        ({"flops": 0.5, "kept_tokens": (3,)}, "--encoder-flops and --encoder-kept: give one of them"),
        ({"flops": 0.5, "text_flops": 2.0}, "--text-encoder-flops 2: a share"),
        ({"text_flops": 0.5}, "--text-encoder-flops: it is for a vision encoder that prunes"),
        ({"layers": "1,2"}, "--encoder-layers: it is for a vision encoder that prunes; give --encoder-flops"),
        ({"merge": "drop"}, "--encoder-merge: it is for a vision encoder that prunes"),
        ({"text_flops": 0.5, "form": "dynamic"}, "that encoder counts by the temperature too; leave it out"),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        EncoderOptions(**options).check()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rule": "madtp"}, "the checkpoint has no space_dict, which MADTP trains .* accepted without: self-cls, cls"),
        ({"rule": "tome", "flops": 0.12}, "leaves at least 0."),
        ({"rule": "cls", "flops": 0.99}, "of the encoder's work at most; give a smaller share"),
        ({"rule": "cls", "form": "dynamic"}, "--encoder-form dynamic: cls has no temperature to count by, madtp has"),
        ({"rule": "tome", "merge": "one"}, "--encoder-merge one: tome merges tokens into their likeness"),
        ({"flops": 0.5, "layers": "0,9"}, "--encoder-layers 0,9: give ascending numbers from 0 to 5"),
        ({"flops": 0.5, "layers": "2,1"}, "--encoder-layers 2,1: give ascending"),
        ({"flops": 0.5, "layers": "first"}, "--encoder-layers 'first': accepted: all, or numbers such as 2,5,8"),
        ({"kept_tokens": (9, 8)}, "2 counts; this encoder prunes in 6 layers .*, give one for each"),
        ({"rule": "self-cls", "kept_tokens": (143, 9, 8, 7, 6, 5)}, "layer 0 gets 144 .* and can keep 1 to 142"),
        ({"rule": "self-cls", "kept_tokens": (142, 142, 8, 7, 6, 5)}, "layer 1 gets 143 .* 1 to 141 of them, not 142"),
        ({"kept_tokens": (100, 0, 8, 7, 6, 5)}, "layer 1 gets 100 image tokens and can keep 1 to 98 of them, not 0"),
        ({"rule": "tome", "kept_tokens": (71, 60, 50, 40, 30, 20)}, "can keep 72 to 142 of them, not 71"),
        ({"layers": "5", "flops": 0.3}, "pruning in layers 5 leaves at least 0.9"),
    ],
)
def test_what_a_checkpoint_can_not_do(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        plan_pruning(EncoderOptions(**options), config(), has_dictionary=False, temperature=None)


@pytest.mark.parametrize(("temperature", "words"), [(None, "no temperature"), (0.0, "a temperature of 0")])
def test_a_dynamic_form_without_a_temperature(temperature: float | None, words: str) -> None:
    with pytest.raises(UsageError, match=f"the checkpoint has {words}"):
        plan_pruning(EncoderOptions(form="dynamic"), config(), has_dictionary=True, temperature=temperature)
