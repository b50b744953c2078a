"""catp-calibrate ratio of a model of videos: a ratio is each frame's, as plain PyTorch and numpy count it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from references import count_points
from typer.testing import CliRunner
from videos import QUESTIONS, Video, write_questions, write_videos

from catp.calibration.accuracy.settings import Setting
from catp.calibration.commands.calibrate import app
from catp.calibration.data.dataset import VqaExample
from catp.calibration.ratio import layer_weights
from catp.calibration.ratio.layer_weights import LayerWeights
from catp.calibration.ratio.search import measure
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle

Seen = tuple[torch.Tensor, np.ndarray]  # query embeddings [F, N, D], points int64 [F, N]


@pytest.fixture(scope="module")
def reference(video_checkpoint: Path) -> Reference:
    return Reference(load_checkpoint(str(video_checkpoint)))


@pytest.fixture(scope="module")
def see(reference: Reference) -> Callable[[Video, str], Seen]:
    """Every frame, seen with the question by plain PyTorch."""

    def seen(video: Video, question: str) -> Seen:
        pixels = torch.cat([reference.pixel_values([frame]) for frame in video.frames])
        instructions = reference.instructions([f"Question: {question} Answer:"] * len(video.frames))
        embeds, evidence = reference.query_embeds(reference.image_embeds(pixels).embeds, None, instructions)
        return embeds, count_points([layer.numpy() for layer in evidence.cross_attention if layer is not None])

    return seen


@pytest.fixture(scope="module")
def by_pytorch(reference: Reference, see: Callable[[Video, str], Seen], video_bundle: Path) -> Callable[..., str]:
    """The answer of Hugging Face's language model, given the `kept` tokens of each frame that numpy counts most for."""
    pipeline = Pipeline.load(video_bundle)

    def answer(video: Video, question: str, kept: int) -> str:
        embeds, points = see(video, question)
        best = [sorted(np.argsort(-of_frame, kind="stable")[:kept].tolist()) for of_frame in points]
        tokens = [24 * frame + query for frame, queries in enumerate(best) for query in queries]
        ids, most = reference.tokenize(f"Question: {question} Answer:"), pipeline.manifest.text.max_new_tokens
        found = reference.continue_greedily(embeds.reshape(-1, embeds.shape[2]), tokens, "original", ids, most)
        return pipeline.detokenize(found.token_ids)

    return answer


def test_losses_are_those_that_pytorch_has(video_bundle: Path, by_pytorch: Callable[..., str], tmp_path: Path) -> None:
    """Answers that count as right are each ratio's own in turns, so that every ratio has some of them."""
    asked, right, kept = [], [], (24, 17, 6)
    for number, video in enumerate(write_videos(tmp_path, 6)):
        for question in video.asked():
            found = [by_pytorch(video, question.question, count) for count in kept]
            answer = found[number % 3]
            asked.append(VqaExample(question.id, video.folder, question.question, (answer,), "x", question.image_key))
            right.append([one == answer for one in found])
    settings = [Setting("catp", "original", 0.3), Setting("catp", "original", 0.75)]
    measured = measure(Pipeline.load(video_bundle), asked, settings, "exact match", seed=0, batch_size=5)
    assert (measured.questions, measured.images, measured.skipped) == (12, 6, 0)
    wanted = np.mean(right, 0)
    assert measured.full_accuracy == wanted[0] > 0
    assert [drop.accuracy for drop in measured.drops] == wanted[1:].tolist() and wanted[1:].min() > 0


def test_the_command_finds_and_confirms_a_ratio(video_bundle: Path, tmp_path: Path) -> None:
    bundle = shutil.copytree(video_bundle, tmp_path / "bundle")
    pipeline = Pipeline.load(bundle)

    def answers(video: Video, question: str) -> list[str]:
        """Those with all tokens and with nearly all, both of which count as right."""
        prompt = [f"Question: {question} Answer:"]
        full, little = (pipeline.generate([video.folder], prompt, ratio, num_beams=1)[0].answer for ratio in (0, 0.05))
        return [full] * 4 + [little] * 4

    data = write_questions(tmp_path / "own.jsonl", write_videos(tmp_path, 20), answers)
    arguments = ["ratio", str(bundle), "--data", str(data), "--ratios", "0.05,0.9", "--json", "--learn-layer-weights"]
    result = CliRunner().invoke(app, [*arguments, "--max-accuracy-drop", "0.5"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["confirmed"] and found["chosen"]["setting"]["ratio"] == 0.05
    assert found["search"]["drops"][0]["accuracy"] == 1.0 and found["confirmation"]["accuracy"] == 1.0
    weights = found["layer_weights"]  # one layer has votes here: whatever it counts, the order stays
    assert weights["learned"] == [1.0] and weights["accuracy"] == weights["default_accuracy"] == 1.0
    assert open_bundle(bundle).manifest.pruning.ratio == 0.05


def test_points_of_layers_are_those_of_each_frame(
    video_bundle: Path,
    reference: Reference,
    see: Callable[[Video, str], Seen],
    by_pytorch: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    videos = write_videos(tmp_path, 6)
    asked = []
    for number, video in enumerate(videos):
        for question in video.asked():  # every second one is right
            answer = by_pytorch(video, question.question, 12) if number % 2 else "nothing of the kind"
            asked.append(VqaExample(question.id, video.folder, question.question, (answer,), "x", question.image_key))
    pipeline = Pipeline.load(video_bundle)
    weights = LayerWeights(pipeline, asked, 12, "original", "exact match", 4)
    about = [(video, text) for video in videos for text in QUESTIONS]
    for case, (video, text) in zip(weights._cases, about, strict=True):
        embeds, points = see(video, text)
        assert case.prompt == reference.tokenize(f"Question: {text} Answer:") and case.image == str(video.folder)
        torch.testing.assert_close(torch.tensor(case.embeds), embeds.reshape(-1, embeds.shape[2]), rtol=0, atol=1e-3)
        np.testing.assert_allclose(case.points, points.reshape(1, -1), rtol=0.01)
    assert weights.right((1.0,)).tolist() == [float(number % 2) for number in range(6) for _ in QUESTIONS]
    monkeypatch.setattr(layer_weights, "MOST_FRAMES", 4)  # reached by the questions about two frames
    assert len(LayerWeights(pipeline, asked, 12, "original", "exact match", 2)._cases) == 2
