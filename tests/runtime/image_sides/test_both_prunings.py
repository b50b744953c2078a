"""Image tokens pruned inside the encoder, query tokens after it: votes of what is left, each as its patches count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import CHECKPOINT, samples, scenes
from catp.export.exporter import export_bundle
from catp.export.families.query_tokens import cross_attention
from catp.export.image_encoders.attention_maps import attention_of
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import Pipeline, UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.providers.base import to_host

pytestmark = pytest.mark.heavy  # a bundle that prunes in both places takes half a minute

PATCHES = 36


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The demo, by token norm, each other token averaged into the nearest kept one; patches weigh the votes."""
    folder = tmp_path_factory.mktemp("both") / "bundle"
    options = EncoderOptions("norm", 0.75)
    export_bundle(str(CHECKPOINT), folder, options={"image_weights": "patches"}, encoder=options)
    return Pipeline.load(folder)


@pytest.fixture(scope="module")
def model() -> Any:
    return load_checkpoint(str(CHECKPOINT)).model.float()


@pytest.mark.parametrize("wish", [EncoderWish(), EncoderWish(flops=0.5), EncoderWish(kept_tokens=(34, 5, 3, 1))])
def test_survivors_vote_as_often_as_they_have_patches(pipeline: Pipeline, model: Any, wish: EncoderWish) -> None:
    pixels = pipeline.preprocess([example.image for example in scenes.examples(6, seed=3)])
    encoded = pipeline.encode(pixels, encoder=wish)
    embeds, weights = (to_host(encoded[name]) for name in ("image_embeds", "image_weights"))
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None
    assert embeds.shape[1] == weights.shape[1] == 1 + wish.schedule(spec)[-1]
    np.testing.assert_array_equal(weights.sum(1), 1 + PATCHES)
    assert (weights == weights.round()).all() and weights.min() == 1 and (weights[:, 0] == 1).all()
    with attention_of(cross_attention(model.qformer)) as layers, torch.no_grad():
        queries = model.query_tokens.expand(6, -1, -1)
        model.qformer(query_embeds=queries, encoder_hidden_states=torch.from_numpy(embeds))
    points = np.zeros((6, 32))
    for (maps,) in layers:
        for row, heads in enumerate(maps.numpy()):
            for of_head in heads:  # [queries, image tokens]
                for token, column in enumerate(of_head.T):
                    for place, query in enumerate(np.argsort(-column, kind="stable")):
                        points[row, query] += (32 - place) * weights[row, token]
    kept = to_host(pipeline.prune(encoded, 16).kept_indices)
    for row in range(6):
        best = np.argsort(-points[row], kind="stable")
        gap = points[row, best[15]] - points[row, best[16]]
        assert gap < 3 or kept[row].tolist() == sorted(best[:16])  # a near tie may go either way
    assert np.ptp(weights, 1).min() > 0


def test_a_schedule_and_a_ratio_are_chosen_by_the_call(pipeline: Pipeline) -> None:
    sample = samples()[0]
    found = {
        (flops, ratio): pipeline.generate([sample.image], [sample.prompt], ratio, encoder=EncoderWish(flops=flops))[0]
        for flops in (0.85, 0.4)
        for ratio in (0.0, 0.5)
    }
    assert found[0.85, 0.0].answer == sample.answer
    assert [len(answer.kept_indices) for answer in found.values()] == [32, 16, 32, 16]
    assert found[0.85, 0.5].kept_indices != found[0.4, 0.5].kept_indices


def test_pictures_of_a_batch_are_what_they_are_alone(pipeline: Pipeline) -> None:
    examples = list(scenes.examples(5, seed=9))
    images, prompts = [e.image for e in examples], [e.question.prompt for e in examples]
    together = pipeline.generate(images, prompts, 0.5)
    alone = [pipeline.generate([image], [prompt], 0.5)[0] for image, prompt in zip(images, prompts)]
    assert [(a.token_ids, a.kept_indices) for a in together] == [(a.token_ids, a.kept_indices) for a in alone]


@pytest.mark.parametrize(
    ("options", "encoder", "message"),
    [
        ({"image_weights": "patches"}, EncoderOptions(), "every token of this encoder is one patch"),
        ({"image_weights": "patches"}, EncoderOptions("norm", 0.8, merge="drop"), "the merge 'drop' counts none"),
        ({"image_weights": "attention"}, EncoderOptions("norm", 0.8), "accepted: patches, or leave it out"),
        ({}, EncoderOptions("norm", 0.8, text_flops=0.7), "has no text encoder that prunes; leave it out"),
        ({}, EncoderOptions("taught", 0.8), "has no scorer beside its weights"),
        ({}, EncoderOptions("taught", 0.8, scorer=str(CHECKPOINT)), "no taught.safetensors there"),
        ({}, EncoderOptions("cls", 0.8, scorer="nowhere"), "no taught.safetensors there"),
        ({}, EncoderOptions("madtp", 0.8), "has no space_dict"),
        ({}, EncoderOptions("pitome", 0.8, merge="one"), "accepted: nearest"),
        ({}, EncoderOptions("tome", 0.2), "leaves at least"),
    ],
)
def test_what_can_not_be_exported(
    options: dict[str, Any],
    encoder: EncoderOptions,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # a name may be one of the Hub's
    with pytest.raises(UsageError, match=message):
        export_bundle(str(CHECKPOINT), tmp_path / "bundle", options=options, encoder=encoder)
    assert not list(tmp_path.iterdir())
