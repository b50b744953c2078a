"""Profiles serve every call that the orchestrator makes, and contradictions are named."""

from pathlib import Path

import pytest

from catp.export.engines.profiles import Limits
from catp.runtime import UsageError
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.bundle.plans import ShapeRange


@pytest.fixture(scope="module")
def manifest(demo_bundle: Path) -> Manifest:
    return open_bundle(demo_bundle, verify=False).manifest


def test_the_language_model_has_one_for_prefill_and_one_for_decode(manifest: Manifest) -> None:
    limits = Limits(max_batch=4, max_prompt=48, max_length=96)
    graph = manifest.graphs["language_model"]
    prefill, decode = limits.profiles(graph, manifest)
    assert prefill.shapes["input_ids"] == ShapeRange(min=(1, 1), opt=(1, 16), max=(4, 48))
    assert prefill.shapes["prefix_embeds"] == ShapeRange(min=(1, 1, 128), opt=(1, 16, 128), max=(4, 32, 128))
    assert decode.shapes["input_ids"] == ShapeRange(min=(1, 1), opt=(1, 1), max=(4, 1))
    assert decode.shapes["prefix_positions"] == ShapeRange(min=(1, 0), opt=(1, 0), max=(4, 0))
    for profile in (prefill, decode):
        assert profile.shapes["past_key_values.1.value"].max == (4, 4, 96, 32)
        assert set(profile.shapes) == {tensor.name for tensor in graph.inputs}
    assert limits.fixed(graph, manifest) == {"max_length": 96}


def test_the_number_kept_is_a_shape_tensor_or_baked_in(manifest: Manifest) -> None:
    graph = manifest.graphs["qformer_voting"]
    (free,) = Limits().profiles(graph, manifest)
    assert free.values == {"num_kept": ShapeRange(min=(1,), opt=(16,), max=(32,))}
    baked = Limits(ratio=0.75, fixed_ratio=True)
    (profile,) = baked.profiles(graph, manifest)
    assert profile.values == {} and set(profile.shapes) == {"image_embeds"}
    assert baked.fixed(graph, manifest) == {"num_kept": 8}
    prefill, decode = baked.profiles(manifest.graphs["language_model"], manifest)
    assert prefill.shapes["prefix_positions"] == ShapeRange(min=(1, 8), opt=(1, 8), max=(4, 8))
    assert decode.shapes["prefix_positions"].max == (4, 0)


def test_a_bundle_that_never_prunes_keeps_every_token(manifest: Manifest) -> None:
    pruning = manifest.pruning.model_copy(update={"method": "none", "ratio": 0.0})
    whole = manifest.model_copy(update={"vote": pruning})
    assert Limits().kept(whole) == (32, 32, 32)
    with pytest.raises(UsageError, match="keeps every token"):
        Limits(ratio=0.5).kept(whole)


def test_limits_that_contradict_each_other_are_named(manifest: Manifest) -> None:
    with pytest.raises(UsageError, match=r"--max-length 64: 32 image tokens and a prompt of 64 do not fit; .* 96"):
        Limits(max_length=64).check(manifest)
    Limits(max_length=96).check(manifest)
    Limits(max_length=72, ratio=0.75, fixed_ratio=True).check(manifest)
    for name in ("max_batch", "max_prompt", "max_length"):
        with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} 0: give 1 to"):
            Limits(**{name: 0})
