"""How a plan is called is decided on the host: profile, shapes, shared memory."""

import pytest
from written_plans import HEADS, SLOTS, WIDTH, language_model, qformer

from catp.runtime import UsageError
from catp.runtime.providers.launch import plan_launch, shared_addresses

CACHE = "past_key_values.0.key"


def call(batch: int, seq: int, kept: int, slots: int = SLOTS) -> dict[str, tuple[int, ...]]:
    return {
        "input_ids": (batch, seq),
        "prefix_embeds": (batch, kept, WIDTH),
        "prefix_positions": (batch, kept),
        "write_indices": (batch,),
        CACHE: (batch, HEADS, slots, 32),
    }


def test_prefill_and_decode_get_their_profiles() -> None:
    spec = language_model()
    assert plan_launch(spec, call(3, 20, 16), {}).profile == 0
    assert plan_launch(spec, call(1, 1, 5), {}).profile == 0  # a prompt of one token is still a prefill
    assert plan_launch(spec, call(3, 1, 0), {}).profile == 1


def test_output_shapes_follow_the_inputs() -> None:
    launch = plan_launch(language_model(), call(3, 20, 16), {})
    assert launch.outputs == {"logits": (3, 384), "present.0.key": (3, HEADS, SLOTS, 32)}
    launch = plan_launch(qformer(), {"image_embeds": (2, 37, WIDTH)}, {"num_kept": (8,)})
    assert launch.outputs == {"kept_embeds": (2, 8, WIDTH)}
    assert launch.values == {"num_kept": (8,)}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((5, 20, 16), r"input_ids is 5x20, and these engines take 1x1 to 4x64; .* --max-batch"),
        ((2, 65, 16), r"input_ids is 2x65, .* --max-prompt"),
        ((2, 20, 33), r"prefix_embeds is 2x33x128, .* --ratio"),
    ],
)
def test_a_call_that_is_too_large_names_the_option(given: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        plan_launch(language_model(), call(*given), {})


def test_a_cache_of_another_length_is_refused() -> None:
    with pytest.raises(UsageError, match=r"past_key_values\.0\.key is 2x4x64x32"):
        plan_launch(language_model(), call(2, 20, 16, slots=64), {})


def test_inputs_that_contradict_each_other_are_a_bug() -> None:
    with pytest.raises(ValueError, match="batch"):
        plan_launch(language_model(), {**call(2, 20, 16), "write_indices": (3,)}, {})
    with pytest.raises(ValueError, match="it takes"):
        plan_launch(language_model(), {"input_ids": (2, 20)}, {})


def test_a_baked_ratio_takes_its_number_and_no_other() -> None:
    launch = plan_launch(qformer(num_kept=16), {"image_embeds": (2, 37, WIDTH)}, {"num_kept": (16,)})
    assert launch.values == {} and launch.outputs == {"kept_embeds": (2, 16, WIDTH)}
    with pytest.raises(UsageError, match="num_kept is 8, and these engines were built for 16 alone"):
        plan_launch(qformer(num_kept=16), {"image_embeds": (2, 37, WIDTH)}, {"num_kept": (8,)})


def test_a_free_ratio_stays_within_its_range() -> None:
    with pytest.raises(UsageError, match=r"num_kept is 33, .* --ratio"):
        plan_launch(qformer(), {"image_embeds": (2, 37, WIDTH)}, {"num_kept": (33,)})


def test_the_cache_is_written_where_it_is_read() -> None:
    spec = language_model()
    assert shared_addresses(spec, {CACHE: 4096}, {}) == {"present.0.key": 4096}
    assert shared_addresses(spec, {CACHE: 4096}, {"present.0.key": 4096, "logits": 1}) == {"present.0.key": 4096}
    with pytest.raises(ValueError, match=r"present\.0\.key must be bound to the memory of past_key_values\.0\.key"):
        shared_addresses(spec, {CACHE: 4096}, {"present.0.key": 8192})
