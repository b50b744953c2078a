"""A vision encoder that prunes, run by the runtime: against Hugging Face's modules, and against masks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from catp.calibration.data import open_data
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.checkpoints.madtp import Madtp, read_madtp
from catp.export.demo.vqa import CHECKPOINT, DENSE, samples
from catp.export.image_encoders.pruned_reference import PrunedEmbeds, encode
from catp.runtime import EncoderWish, Pipeline, UsageError
from catp.runtime.providers.base import to_host

LAYERS = (0, 2, 4)
OTHER = (120, 60, 9)
"""A schedule that no bundle here has by default."""


@pytest.fixture(scope="module")
def scheduled(pruned_bundle: Path) -> Pipeline:
    return Pipeline.load(pruned_bundle)


@pytest.fixture(scope="module")
def counting(dynamic_bundle: Path) -> Pipeline:
    return Pipeline.load(dynamic_bundle)


@pytest.fixture(scope="module")
def vision_model() -> torch.nn.Module:
    return load_checkpoint(str(CHECKPOINT)).model.vision_model


@pytest.fixture(scope="module")
def vision_model_of_dense() -> torch.nn.Module:
    return load_checkpoint(str(DENSE)).model.vision_model


@pytest.fixture(scope="module")
def madtp() -> Madtp:
    return read_madtp(str(CHECKPOINT), 128)


@pytest.fixture(scope="module")
def pixels(scheduled: Pipeline) -> np.ndarray:
    return scheduled.preprocess([sample.image for sample in samples()[:3]])


def reference(
    vision_model: torch.nn.Module, pixels: np.ndarray, madtp: Madtp, kept: tuple[int, ...] | None, tau: float | None
) -> PrunedEmbeds:
    guidance = madtp.guidance("here", "vision_model", 6, 128)
    return encode(vision_model, torch.from_numpy(pixels), "madtp", "one", LAYERS, kept, tau, guidance)


def by_patch(embeds: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """CLS, then the others in the order of their patches; merged ones by their first number."""
    return np.concatenate([embeds[:1], embeds[1:][np.lexsort((embeds[1:, 0], positions))]])


def same(encoded: dict[str, np.ndarray], wanted: PrunedEmbeds) -> int:
    """How many pictures agree; those that rounding may decide otherwise are left out."""
    agreeing = 0
    for row in np.flatnonzero(~wanted.in_doubt):
        assert sorted(encoded["kept_positions"][row]) == sorted(wanted.positions[row])
        ours = by_patch(encoded["image_embeds"][row], encoded["kept_positions"][row])
        theirs = by_patch(wanted.embeds[row].numpy(), wanted.positions[row])
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()
        agreeing += 1
    return agreeing


def run(pipeline: Pipeline, pixels: np.ndarray, wish: EncoderWish) -> dict[str, np.ndarray]:
    return {name: to_host(value) for name, value in pipeline.encode(pixels, encoder=wish).items()}


def test_any_schedule_runs_in_one_export(
    scheduled: Pipeline, vision_model: torch.nn.Module, madtp: Madtp, pixels: np.ndarray
) -> None:
    encoded = run(scheduled, pixels, EncoderWish(kept_tokens=OTHER))
    assert encoded["image_embeds"].shape == (3, 1 + 9 + 1, 128)
    assert same(encoded, reference(vision_model, pixels, madtp, OTHER, None)) >= 1
    for layer, kept in zip(LAYERS[:-1], OTHER):
        left = encoded[f"positions.{layer}"]
        assert left.shape == (3, kept + 1)
        # A patch that is gone does not come back, and none is there twice.
        for row, last in zip(left, encoded["kept_positions"]):
            patches = row[row >= 0]
            assert len(set(patches)) == len(patches) and set(last[last >= 0]) <= set(patches)


def test_pictures_of_a_batch_are_what_they_are_alone(scheduled: Pipeline, pixels: np.ndarray) -> None:
    together = run(scheduled, pixels, EncoderWish(flops=0.4))
    for row in range(3):
        alone = run(scheduled, pixels[row : row + 1], EncoderWish(flops=0.4))
        np.testing.assert_array_equal(np.sort(alone["kept_positions"][0]), np.sort(together["kept_positions"][row]))


def test_masks_are_an_oracle(
    scheduled: Pipeline, vision_model: torch.nn.Module, madtp: Madtp, pixels: np.ndarray
) -> None:
    """All tokens stay, those that were dropped are masked: the survivors come out the same."""
    wanted = reference(vision_model, pixels[:1], madtp, OTHER, None)
    encoded = run(scheduled, pixels[:1], EncoderWish(kept_tokens=OTHER))
    embeds, alive, positions = masked(vision_model, torch.from_numpy(pixels[:1]), OTHER, madtp.space_dict)
    if not wanted.in_doubt[0]:
        assert sorted(positions[alive[1:]]) == sorted(encoded["kept_positions"][0])
        ours = by_patch(encoded["image_embeds"][0], encoded["kept_positions"][0])
        theirs = by_patch(embeds[alive], positions[alive[1:]])
        assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


@torch.no_grad()
def masked(
    vision_model: torch.nn.Module, pixels: torch.Tensor, kept_tokens: tuple[int, ...], space_dict: torch.Tensor | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens [n, W] of one picture, every merged one added at the end; which are alive; the others' patches."""
    assert space_dict is not None
    hidden = vision_model.embeddings(pixels)[0]  # type: ignore[operator]
    alive = torch.ones(len(hidden), dtype=torch.bool)
    positions = torch.arange(len(hidden) - 1)
    counts = dict(zip(LAYERS, kept_tokens))
    for number, layer in enumerate(vision_model.encoder.layers):  # type: ignore[union-attr, arg-type]
        attention, normed = layer.self_attn, layer.layer_norm1(hidden)
        split = attention.qkv(normed).view(len(hidden), 3, attention.num_heads, -1).permute(1, 2, 0, 3)
        logits = split[0] @ split[1].transpose(1, 2) * attention.scale
        maps = logits.masked_fill(~alive, -torch.inf).softmax(-1)
        heads = maps @ split[2]
        after = hidden + attention.projection(heads.transpose(0, 1).flatten(1))
        if number in counts:
            # Rows of dead tokens count for nothing, nor do their columns.
            living = alive[1:].nonzero()[:, 0]
            m = (hidden[1:] @ space_dict.T).amax(1)[living]
            s = maps[:, 1:, 1:].amax(0)[living].sum(0)[living]
            norms = heads[:, 1:].norm(dim=-1)[:, living]
            c = (maps[:, 0, 1:][:, living] * norms / norms.sum(0)).sum(0)
            scores = (s / s.sum() + m / m.sum() + c) / 3
            order = scores.argsort(descending=True)
            gone = order[counts[number] :]
            share = scores[gone] / scores[gone].sum()
            merged = (share[:, None] * after[1 + living[gone]]).sum(0)
            alive[1 + living[gone]] = False
            after = torch.cat([after, merged[None]])
            alive, positions = torch.cat([alive, torch.tensor([True])]), torch.cat([positions, torch.tensor([-1])])
        hidden = after + layer.mlp(layer.layer_norm2(after))
    return vision_model.post_layernorm(hidden).numpy(), alive.numpy(), positions.numpy()  # type: ignore[operator]


def test_counts_of_the_dynamic_form_are_pytorchs(
    counting: Pipeline, vision_model: torch.nn.Module, madtp: Madtp, pixels: np.ndarray
) -> None:
    """As a batch, whose pictures keep equally many tokens, and each picture alone."""
    for tau in (0.2, madtp.temperature):
        assert tau is not None
        for part in (pixels, pixels[:1], pixels[1:2]):
            encoded = run(counting, part, EncoderWish(temperature=tau))
            wanted = reference(vision_model, part, madtp, None, tau)
            if not wanted.in_doubt.any():
                assert tuple(encoded["kept_counts"]) == wanted.counts
            assert encoded["image_embeds"].shape[1] == encoded["kept_positions"].shape[1] + 1


@pytest.mark.heavy
def test_counts_of_two_hundred_pictures_are_pytorchs(
    counting: Pipeline, vision_model: torch.nn.Module, madtp: Madtp
) -> None:
    compared = 0
    for question in open_data("demo").subset(200, None, 7):
        picture = counting.preprocess([question.image])
        wanted = reference(vision_model, picture, madtp, None, madtp.temperature)
        found = tuple(run(counting, picture, EncoderWish())["kept_counts"])
        assert wanted.in_doubt[0] or found == wanted.counts, question.id
        compared += not wanted.in_doubt[0]
    assert compared >= 150


def test_temperature_zero_prunes_nothing(counting: Pipeline, vision_model: torch.nn.Module, pixels: np.ndarray) -> None:
    encoded = run(counting, pixels, EncoderWish(temperature=0.0))
    assert encoded["kept_counts"].tolist() == [144] * 3
    with torch.no_grad():
        dense = vision_model(torch.from_numpy(pixels)).last_hidden_state.numpy()
    assert np.abs(encoded["image_embeds"] - by_patch_of_all(dense, encoded["kept_positions"])).max() <= 1e-4


def by_patch_of_all(dense: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """A dense encoder's tokens [B, I, W] in the order of `positions`."""
    places = np.concatenate([np.zeros((len(dense), 1), np.int64), positions + 1], 1)
    return np.take_along_axis(dense, places[:, :, None], 1)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (EncoderWish(kept_tokens=(100,)), "1 counts; this encoder prunes in 3 layers"),
        (EncoderWish(kept_tokens=(143, 100, 80)), "layer 0 gets 144 image tokens and can keep 1 to 142"),
        (EncoderWish(kept_tokens=(100, 100, 80)), "layer 2 gets 101 image tokens and can keep 1 to 99"),
        (EncoderWish(kept_tokens=(100, 40, 0)), "layer 4 gets 41 image tokens and can keep 1 to 39"),
        (EncoderWish(flops=1.0), "a share of the encoder's work, above 0 and below 1"),
        (EncoderWish(flops=0.5, temperature=1.0), "give one of them"),
        (EncoderWish(temperature=0.5), "keeps as many tokens as its schedule says"),
    ],
)
def test_wishes_that_a_schedule_can_not_fulfil(
    scheduled: Pipeline, pixels: np.ndarray, wish: EncoderWish, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        scheduled.encode(pixels, encoder=wish)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (EncoderWish(temperature=-0.1), "encoder temperature -0.1: give a number from 1e-06 to"),
        (EncoderWish(temperature=1e39), "encoder temperature 1e.39"),
        (EncoderWish(temperature=1e-300), "or 0, which prunes nothing"),
        (EncoderWish(temperature=float("nan")), "encoder temperature nan"),
        (EncoderWish(flops=0.5), "counts tokens by its temperature"),
    ],
)
def test_wishes_that_a_temperature_can_not_fulfil(
    counting: Pipeline, pixels: np.ndarray, wish: EncoderWish, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        counting.encode(pixels, encoder=wish)


def test_a_dense_encoder_keeps_everything(pipeline: Pipeline) -> None:
    with pytest.raises(UsageError, match="the vision encoder of this bundle"):
        pipeline.generate([samples()[0].image], ["what?"], encoder=EncoderWish(flops=0.5))


def test_answers_are_right_with_half_of_the_work(scheduled: Pipeline) -> None:
    asked = samples()
    answers = scheduled.generate([sample.image for sample in asked], [sample.prompt for sample in asked])
    right = sum(answer.answer == sample.answer for answer, sample in zip(answers, asked))
    assert right >= 0.75 * len(asked)
    # CLS, the patches of the last layer's count, and nothing that was merged.
    spec = scheduled.manifest.encoder_pruning
    assert spec is not None and spec.kept_tokens is not None
    assert answers[0].kept_indices[0] == 0 and answers[0].num_kept <= 1 + spec.kept_tokens[-1]


def test_questions_of_a_batch_are_pruned_as_they_are_alone(fully_pruned_bundle: Path) -> None:
    """Each keeps a fraction of its own tokens, whatever pads stand behind it."""
    pipeline = Pipeline.load(fully_pruned_bundle)
    image = samples()[0].image
    prompts = [
        "is there a circle?",
        "what is in the bottom right?",
        "what color is the shape in the middle left of it?",
    ]
    together = pipeline.ask(image, prompts)
    for prompt, answer in zip(prompts, together):
        assert pipeline.ask(image, [prompt])[0].token_ids == answer.token_ids
    assert [a.token_ids for a in pipeline.ask(image, prompts, num_beams=3)] == [
        pipeline.ask(image, [prompt], num_beams=3)[0].token_ids for prompt in prompts
    ]


def test_half_precision_keeps_the_same_patches(
    fully_pruned_bundle: Path, vision_model_of_dense: torch.nn.Module
) -> None:
    """At least 98 of 100, on trained weights."""
    pipeline = Pipeline.load(fully_pruned_bundle)
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None and spec.kept_tokens is not None
    kept = alike = 0
    for question in open_data("demo").subset(20, None, 5):
        pixels = pipeline.preprocess([question.image])
        found = run(pipeline, pixels, EncoderWish())["kept_positions"]
        wanted = encode(
            vision_model_of_dense, torch.from_numpy(pixels), "cls", "nearest", spec.layers, spec.kept_tokens, None, None
        )
        kept += found.size
        alike += len(np.intersect1d(found, wanted.positions))
    assert alike >= 0.98 * kept


def test_ranking_prunes_as_well(scheduled: Pipeline) -> None:
    sample = samples()[0]
    candidates = [sample.answer, "a red circle", "nothing", "yes"]
    (half,) = scheduled.rank([sample.image], [sample.prompt], candidates)
    (little,) = scheduled.rank([sample.image], [sample.prompt], candidates, encoder=EncoderWish(flops=0.3))
    assert half[0].answer == sample.answer
    assert [found.score for found in half] != [found.score for found in little]
