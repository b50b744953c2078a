"""Scores of BLIP and CLIP against Hugging Face's processors and models, nothing of ours in between."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoProcessor, BlipForImageTextRetrieval, CLIPModel
from typer.testing import CliRunner

from catp.export.demo import samples, scenes
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.inspect import app as inspect_command
from catp.runtime.commands.match import app
from catp.runtime.commands.run import app as run_command

TEXTS = ["what is red?", "a picture of the bottom right, where something is red and something else is not", "green", ""]
ATOL = 1e-5


@pytest.fixture(scope="module")
def images() -> list[Any]:
    """Of several shapes, none of them square."""
    found = [example.image for example in scenes.examples(len(TEXTS), seed=8)]
    return [image.resize((80 + 30 * i, 120)) for i, image in enumerate(found)]


@pytest.fixture(scope="module")
def blip(blip_retrieval_bundle: Path) -> Pipeline:
    return Pipeline.load(blip_retrieval_bundle)


@pytest.fixture(scope="module")
def clip(clip_bundle: Path) -> Pipeline:
    return Pipeline.load(clip_bundle)


@torch.no_grad()
def blip_by_hugging_face(checkpoint: Path, images: list[Any], texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities, and similarities, of text b and image b."""
    processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
    model = BlipForImageTextRetrieval.from_pretrained(checkpoint).eval()
    logits, cosines = [], []
    for image, text in zip(images, texts):
        inputs = processor(images=image, text=text, return_tensors="pt")
        logits.append(model(**inputs, use_itm_head=True).itm_score[0])
        cosines.append(model(**inputs, use_itm_head=False).itm_score[0, 0])
    return torch.stack(logits).softmax(1)[:, 1].numpy(), torch.stack(cosines).numpy()


@torch.no_grad()
def clip_by_hugging_face(checkpoint: Path, images: list[Any], texts: list[str]) -> Any:
    processor = AutoProcessor.from_pretrained(checkpoint, backend="pil")
    inputs = processor(images=images, text=texts, return_tensors="pt", padding=True)
    return CLIPModel.from_pretrained(checkpoint).eval()(**inputs)


def test_blip_scores_a_ragged_batch_as_hugging_face_does_each_pair(
    blip: Pipeline, blip_retrieval_checkpoint: Path, images: list[Any]
) -> None:
    found = blip.match(images, TEXTS)
    likely, cosines = blip_by_hugging_face(blip_retrieval_checkpoint, images, TEXTS)
    np.testing.assert_allclose([match.probability for match in found], likely, atol=ATOL)
    np.testing.assert_allclose([match.similarity for match in found], cosines, atol=ATOL)
    assert np.ptp(likely) > 1e-2 and np.ptp(cosines) > 1e-2  # of a model to which all is alike, this would show nothing


def test_clip_scores_as_hugging_face_does(clip: Pipeline, clip_checkpoint: Path, images: list[Any]) -> None:
    wanted = clip_by_hugging_face(clip_checkpoint, images, TEXTS)
    found = clip.embed_images(images), clip.embed_texts(TEXTS)
    np.testing.assert_allclose(found[0][:, 0], wanted.image_embeds, atol=ATOL)
    np.testing.assert_allclose(found[1], wanted.text_embeds, atol=ATOL)
    scale = clip.manifest.logit_scale
    assert scale == pytest.approx(float(np.exp(3.1)), rel=1e-6)
    np.testing.assert_allclose(scale * (found[0][:, 0] @ found[1].T), wanted.logits_per_image, atol=1e-4)
    matches = clip.match(images, TEXTS)
    cosines = wanted.logits_per_image.diagonal().numpy() / scale
    np.testing.assert_allclose([match.similarity for match in matches], cosines, atol=ATOL)
    assert all(match.probability is None for match in matches) and np.ptp(wanted.logits_per_image.numpy()) > 1e-1


def test_a_text_scores_the_same_whatever_is_beside_it(blip: Pipeline, clip: Pipeline, images: list[Any]) -> None:
    for pipeline in (blip, clip):
        together = pipeline.match(images, TEXTS)
        for match, image, text in zip(together, images, TEXTS):
            alone = pipeline.match([image], [text])[0]
            assert match.similarity == pytest.approx(alone.similarity, abs=1e-5)
            assert match.probability == (alone.probability and pytest.approx(alone.probability, abs=1e-5))


def test_vectors_of_a_schedule_that_keeps_fewer_tokens_are_others(pruned_clip_bundle: Path, images: list[Any]) -> None:
    from catp.runtime import EncoderWish

    pipeline = Pipeline.load(pruned_clip_bundle)
    usual = pipeline.match(images, TEXTS)
    fewer = pipeline.match(images, TEXTS, encoder=EncoderWish(flops=0.45))
    assert all(len(a.kept_indices) > len(b.kept_indices) > 1 for a, b in zip(usual, fewer))
    assert np.abs([a.similarity - b.similarity for a, b in zip(usual, fewer)]).max() > 1e-4


def test_the_command_prints_what_the_model_has(blip_retrieval_bundle: Path, clip_bundle: Path) -> None:
    asked = ["--image", str(samples()[0].image), "--text", "red", "--text", "blue"]
    for bundle, matches in ((blip_retrieval_bundle, 2), (clip_bundle, 0)):
        plain = CliRunner().invoke(app, [str(bundle), *asked])
        assert plain.exit_code == 0, plain.output
        assert plain.stdout.count("similarity") == 2 and plain.stdout.count("match ") == matches
        lines = [
            json.loads(line) for line in CliRunner().invoke(app, [str(bundle), *asked, "--json"]).stdout.splitlines()
        ]
        assert [line["text"] for line in lines] == ["red", "blue"]
        assert all((line["probability"] is None) == (not matches) for line in lines)


def test_what_such_bundles_can_not_do_is_said(blip_retrieval_bundle: Path, clip: Pipeline, blip: Pipeline) -> None:
    image = ["--image", str(samples()[0].image)]
    asked = CliRunner().invoke(run_command, [str(blip_retrieval_bundle), *image, "--prompt", "what?"])
    assert asked.exit_code == 2 and "it has no language model, it scores texts; use catp-match" in asked.stderr
    for pipeline, most in ((blip, 64), (clip, 77)):
        with pytest.raises(UsageError, match=f"the text encoder takes {most}; give a shorter one"):
            pipeline.match([samples()[0].image], ["red " * 600])
        with pytest.raises(UsageError, match="has no query tokens to leave out"):
            pipeline.match([samples()[0].image], ["red"], ratio=0.5)
    with pytest.raises(UsageError, match="which has no scale for classes; accepted: CLIP"):
        blip.classify([samples()[0].image], ["cat", "dog"])


def test_madtp_s_rule_is_refused_where_a_clip_has_no_maps(clip_checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(clip_checkpoint, tmp_path / "madtp")
    save_file({"space_dict": torch.ones(4, 60)}, folder / "madtp.safetensors")
    with pytest.raises(UsageError, match="the checkpoint has no space_dict with a q_map for each layer"):
        export_bundle(str(folder), tmp_path / "bundle", encoder=EncoderOptions("madtp", 0.6))
    assert not (tmp_path / "bundle").exists()


def test_inspection_says_what_is_scored(blip_retrieval_bundle: Path, clip_bundle: Path) -> None:
    found = CliRunner().invoke(inspect_command, [str(blip_retrieval_bundle)])
    assert "scores texts: probability of a match, and contrastive similarity" in found.stdout
    found = CliRunner().invoke(inspect_command, [str(clip_bundle)])
    assert "scores texts: contrastive similarity" in found.stdout
    assert "by a softmax of similarities times 22.19" in found.stdout
    assert "logit_scale" not in open_bundle(blip_retrieval_bundle).manifest.model_dump(mode="json")
