"""catp-calibrate ratio of a Q-Former that reads the question: it measures what plain PyTorch and numpy count."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from references import count_points, received
from typer.testing import CliRunner

from catp.calibration.accuracy.settings import Setting
from catp.calibration.commands.calibrate import app
from catp.calibration.data.dataset import VqaExample
from catp.calibration.ratio.layer_weights import LayerWeights
from catp.calibration.ratio.search import measure
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import scenes
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle

QUESTIONS = ("what is red?", "where is the black diamond in it?")
RATIOS = (0.05, 0.3)


def several(pictures: int) -> list[tuple[Image.Image, str, str]]:
    """Each picture with two questions, one after the other: picture, its key, question."""
    found = [(example.image, str(number)) for number, example in enumerate(scenes.examples(pictures, seed=3))]
    return [(image, key, question) for image, key in found for question in QUESTIONS]


@pytest.fixture(scope="module")
def reference(instructblip_checkpoint: Path) -> Reference:
    return Reference(load_checkpoint(str(instructblip_checkpoint)))


Answer = Callable[[Image.Image, str, float], str]


@pytest.fixture(scope="module")
def by_pytorch(reference: Reference, instructblip_bundle: Path) -> Answer:
    """The answer of Hugging Face's language model, given the tokens that numpy counts most votes for."""
    pipeline = Pipeline.load(instructblip_bundle)

    def answer(image: Image.Image, question: str, ratio: float) -> str:
        prompt = f"Question: {question} Answer:"
        embeds = reference.image_embeds(reference.pixel_values([image])).embeds
        query_embeds, evidence = reference.query_embeds(embeds, None, reference.instructions([prompt]))
        (scores,) = received([layer.numpy() for layer in evidence.self_attention])
        kept = sorted(np.argsort(-scores, kind="stable")[: round(24 * (1 - ratio))].tolist())
        limit = pipeline.manifest.text.max_new_tokens
        ids = reference.tokenize(prompt)
        found = reference.continue_greedily(query_embeds[0], kept, "original", ids, limit)
        return pipeline.detokenize(found.token_ids)

    return answer


def test_losses_are_those_that_pytorch_has(instructblip_bundle: Path, by_pytorch: Answer) -> None:
    pipeline, asked, right = Pipeline.load(instructblip_bundle), [], []
    for number, (image, key, question) in enumerate(several(6)):
        full = by_pytorch(image, question, 0.0)
        asked.append(VqaExample(str(number), image, question, (full,), "x", key))
        right.append([by_pytorch(image, question, ratio) == full for ratio in RATIOS])
    settings = [Setting("self-attention", "original", ratio) for ratio in RATIOS]
    measured = measure(pipeline, asked, settings, "exact match", seed=0, batch_size=5)
    assert (measured.questions, measured.images, measured.full_accuracy) == (12, 6, 1.0)
    assert [drop.accuracy for drop in measured.drops] == np.mean(right, 0).tolist()
    assert 0 < measured.drops[0].accuracy < 1


def test_the_command_finds_and_confirms_a_ratio(instructblip_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(instructblip_bundle, tmp_path / "bundle")
    pipeline = Pipeline.load(bundle)
    lines = []
    for image, key, question in several(20):
        image.save(tmp_path / f"{key}.png")
        # Random weights change their answers with any token, on some CPUs more often: both count as right.
        prompt = [f"Question: {question} Answer:"]
        full, little = (pipeline.generate([image], prompt, ratio, num_beams=1)[0].answer for ratio in (0.0, 0.05))
        lines.append({"image": f"{key}.png", "question": question, "answers": [full] * 4 + [little] * 4})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = ["ratio", str(bundle), "--data", str(tmp_path / "own.jsonl"), "--ratios", "0.05,0.9", "--json"]
    result = CliRunner().invoke(app, [*arguments, "--max-accuracy-drop", "0.5"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["confirmed"] and found["chosen"]["setting"]["ratio"] == 0.05
    assert [drop["accuracy"] for drop in found["search"]["drops"]] == [1.0, pytest.approx(0, abs=0.3)]
    assert open_bundle(bundle).manifest.pruning.ratio == 0.05


def test_points_of_layers_are_those_of_each_question(
    instructblip_diagnostics_bundle: Path, reference: Reference
) -> None:
    """In batches that end within the questions of a picture."""
    pipeline = Pipeline.load(instructblip_diagnostics_bundle)
    asked = [VqaExample(f"{key} {text}", image, text, ("x",), "x", key) for image, key, text in several(3)]
    weights = LayerWeights(pipeline, asked, 12, "original", "exact match", 4)
    for case, (image, _, question) in zip(weights._cases, several(3), strict=True):
        embeds = reference.image_embeds(reference.pixel_values([image])).embeds
        instructions = reference.instructions([f"Question: {question} Answer:"])
        query_embeds, evidence = reference.query_embeds(embeds, None, instructions)
        assert case.prompt == reference.tokenize(f"Question: {question} Answer:")
        torch.testing.assert_close(torch.tensor(case.embeds), query_embeds[0], rtol=0, atol=1e-3)
        points = [count_points([layer.numpy()])[0] for layer in evidence.cross_attention if layer is not None]
        np.testing.assert_allclose(case.points, points, rtol=0.01)  # rounding may change places of two in a rank
