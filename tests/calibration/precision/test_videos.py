"""Precision of a model of videos: what is observed of each frame, and what it costs, frame by frame."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner
from videos import QUESTIONS, Video, write_questions, write_videos

from catp.calibration.commands.calibrate import app
from catp.calibration.data.jsonl import read_jsonl
from catp.calibration.precision.calibrator import split
from catp.calibration.precision.comparison import ask
from catp.calibration.precision.ranges.observation import Examples, ObservingProvider, answer_each
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle

FEW = ["--samples", "16", "--questions", "9", "--max-accuracy-drop", "0.95", "--no-sensitivity"]


def test_calls_have_every_frame(video_bundle: Path, video_checkpoint: Path, tmp_path: Path) -> None:
    """What the language model reads is what plain PyTorch makes of the frames, one after the other."""
    reference, seen = Reference(load_checkpoint(str(video_checkpoint))), Examples()
    videos = write_videos(tmp_path, 3)
    asked = [question for video in videos for question in video.asked()]
    (tmp_path / "empty").mkdir()
    asked.insert(3, Video(tmp_path / "empty", []).asked()[0])
    pipeline = Pipeline(open_bundle(video_bundle), ObservingProvider({}, {}, seen))
    assert list(answer_each(pipeline, asked, (24, 12))) == [1, 2, 3, 5, 6, 7]  # the fourth has no frame
    calls = seen.calls["qformer_voting"]
    assert [len(call["image_embeds"]) for call in calls] == [len(video.frames) for video in videos for _ in QUESTIONS]
    assert [call["num_kept"].tolist() for call in calls] == [[24], [12], [24], [24], [12], [24]]
    read = [call["prefix_embeds"] for call in seen.calls["language_model"] if call["prefix_embeds"].shape[1]]
    assert [embeds.shape[1] for embeds in read] == [48, 24, 24, 24, 36, 72]
    for place, video, question in ((0, videos[0], 0), (2, videos[1], 0), (5, videos[2], 1)):
        prompts = [f"Question: {QUESTIONS[question]} Answer:"] * len(video.frames)
        instructions = reference.instructions(prompts)
        assert instructions is not None
        np.testing.assert_array_equal(calls[place]["instruction_ids"], instructions.ids)
        pixels = torch.cat([reference.pixel_values([frame]) for frame in video.frames])
        embeds, _ = reference.query_embeds(reference.image_embeds(pixels).embeds, None, instructions)
        np.testing.assert_allclose(read[place][0], embeds.reshape(-1, embeds.shape[2]), atol=1e-3)


def test_the_cost_is_what_asking_both_bundles_shows(video_bundle: Path, tmp_path: Path) -> None:
    """Answers, and of each frame the tokens that both keep; a video of one frame is a picture."""
    pipeline, made = Pipeline.load(video_bundle), tmp_path / "int8"

    def answer(video: Video, text: str) -> list[str]:
        return [pipeline.generate([video.folder], [f"Question: {text} Answer:"], 0, num_beams=1)[0].answer] * 10

    data = write_questions(tmp_path / "own.jsonl", write_videos(tmp_path, 30), answer)
    arguments = ["precision", str(video_bundle), "--to", "int8", "--for", "cpu", "--data", str(data), *FEW]
    result = CliRunner().invoke(app, [*arguments, "--min-kept-overlap", "0.5", "-o", str(made), "--json"])
    assert result.exit_code == 0, result.output
    assert all(graph.quantization is not None for graph in open_bundle(made).manifest.graphs.values())
    cost = json.loads(result.stdout)["calibration"]
    asked = split(read_jsonl(data), 16, 9, 0).confirmation
    kept: list[list[list[int]]] = []
    for bundle in (pipeline, Pipeline.load(made, verify=False)):
        found = []
        for question in asked:
            frames = sorted(Path(str(question.image)).iterdir(), key=lambda file: int(file.stem.split("_")[1]))
            scores = bundle.votes(bundle.encode(bundle.preprocess(frames), [question.prompt] * len(frames))).scores
            found += np.argsort(-scores, 1, "stable")[:, :17].tolist()
        kept.append([sorted(of_frame) for of_frame in found])
    before = ask(video_bundle, asked, "exact match", 0, 4, lambda _: None)
    assert (
        sorted(before.kept.tolist()) == sorted(kept[0]) and len(kept[0]) > 9
    )  # questions about longer videos go apart
    overlap = np.mean([len(set(ours) & set(theirs)) / 17 for ours, theirs in zip(*kept)])
    # Dynamic scales are those of a call, and the command asks about several videos at a time.
    assert cost["kept_overlap"] == pytest.approx(overlap, abs=0.02)
    assert cost["questions"] == 9 and cost["accuracy"][0]["before"] == 1.0


@pytest.mark.heavy
def test_a_decoder_of_its_own_becomes_int4(video_t5_bundle: Path, tmp_path: Path) -> None:
    """With T5, whose random weights score all query tokens alike: which ones are kept is rounding's choice."""
    data = write_questions(tmp_path / "own.jsonl", write_videos(tmp_path, 30), lambda *_: ["x"])
    arguments = ["precision", str(video_t5_bundle), "--to", "int8", "--for", "cpu", "--data", str(data), *FEW]
    arguments += ["--decode", "int4", "--block-size", "16", "--min-kept-overlap", "0", "-o", str(tmp_path / "int4")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    graphs = open_bundle(tmp_path / "int4").manifest.graphs
    formats = {name: graph.quantization and graph.quantization.format for name, graph in graphs.items()}
    assert formats == {
        "vision_encoder": "int8", "qformer_voting": "int8", "text_encoder": "int8", "text_decoder": "int4"
    }  # fmt: skip
    pipeline = Pipeline.load(tmp_path / "int4", verify=False)
    (answer,) = pipeline.generate([tmp_path / "video 2"], ["Question: what is red? Answer:"], 0.5)
    assert len(answer.kept_indices) == 36 and answer.token_ids
