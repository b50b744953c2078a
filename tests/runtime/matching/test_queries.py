"""Scores of a retrieval bundle against Hugging Face's processor and model, with all queries and with some."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Blip2ForImageTextRetrieval, Blip2Processor
from typer.testing import CliRunner

from catp.export.demo import samples, scenes
from catp.runtime import Pipeline, UsageError
from catp.runtime.commands.match import app
from catp.runtime.commands.run import app as run_command

TEXTS = ["what is red?", "Question: what is in the bottom right of the picture and where is it? Answer:", "green", ""]


@pytest.fixture(scope="module")
def matcher(retrieval_bundle: Path) -> Pipeline:
    return Pipeline.load(retrieval_bundle)


@pytest.fixture(scope="module")
def images() -> list[Any]:
    return [example.image for example in scenes.examples(len(TEXTS), seed=8)]


def hugging_face(checkpoint: Path, image: Any, text: str, kept: list[int]) -> tuple[float, float]:
    """Probability by a model whose other queries were cut out, and similarity to the kept ones of the whole model."""
    processor = Blip2Processor.from_pretrained(checkpoint, backend="pil")
    model = Blip2ForImageTextRetrieval.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        whole = model(**processor(images=image, text=text, return_tensors="pt"))
        similarity = (whole.image_embeds[0, kept] @ whole.text_embeds[0]).max()
        model.query_tokens = torch.nn.Parameter(model.query_tokens[:, kept])
        model.config.num_query_tokens = processor.num_query_tokens = len(kept)
        inputs = processor(images=image, text=text, return_tensors="pt")
        logits = model(**inputs, use_image_text_matching_head=True).logits_per_image
    return float(logits.softmax(1)[0, 1]), float(similarity)


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_scores_are_those_of_hugging_face_in_a_ragged_batch(
    matcher: Pipeline, retrieval_checkpoint: Path, images: list[Any], ratio: float
) -> None:
    for found, image, text in zip(matcher.match(images, TEXTS, ratio), images, TEXTS):
        assert len(found.kept_indices) == matcher.num_kept(ratio)
        wanted = hugging_face(retrieval_checkpoint, image, text, found.kept_indices)
        np.testing.assert_allclose((found.probability, found.similarity), wanted, atol=1e-4)


def test_texts_and_images_make_a_difference(matcher: Pipeline, images: list[Any]) -> None:
    by_text = matcher.match(images[:1] * 3, TEXTS[:3])
    by_image = matcher.match(images[:3], TEXTS[:1] * 3)
    for matches in (by_text, by_image):
        assert np.ptp([match.probability for match in matches]) > 1e-3
        assert np.ptp([match.similarity for match in matches]) > 1e-3


def test_the_command_prints_a_line_per_text(retrieval_bundle: Path) -> None:
    arguments = [str(retrieval_bundle), "--image", str(samples()[0].image), "--text", "red", "--text", "blue"]
    plain = CliRunner().invoke(app, arguments)
    assert plain.exit_code == 0 and plain.stdout.count("similarity") == 2
    lines = [json.loads(line) for line in CliRunner().invoke(app, [*arguments, "--json"]).stdout.splitlines()]
    assert [line["text"] for line in lines] == ["red", "blue"] and len(lines[0]["kept_indices"]) == 12


def test_what_a_bundle_can_not_do_is_said(retrieval_bundle: Path, demo_bundle: Path, matcher: Pipeline) -> None:
    image = ["--image", str(samples()[0].image)]
    asked = CliRunner().invoke(run_command, [str(retrieval_bundle), *image, "--prompt", "what?"])
    assert asked.exit_code == 2 and "it has no language model, it scores texts; use catp-match" in asked.stderr
    scored = CliRunner().invoke(app, [str(demo_bundle), *image, "--text", "what?"])
    assert scored.exit_code == 2 and "which scores no texts" in scored.stderr
    with pytest.raises(UsageError, match="the Q-Former takes 512; give a shorter one"):
        matcher.match([samples()[0].image], ["red " * 600])
