"""Questions about videos: answers are those of plain PyTorch, given the tokens that each frame votes for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from references import count_points
from typer.testing import CliRunner

from catp.calibration.accuracy.choice import random_scores
from catp.calibration.commands.eval import app
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import scenes
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline

PICTURES = [example.image for example in scenes.examples(7, seed=4)]
VIDEOS = {"four": [0, 1, 2, 3], "two": [4, 5], "other": [6, 3, 1, 0], "picture": [2]}
QUESTIONS = ("what is red?", "where is the black diamond in it?")

Answer = Callable[[str, str, Callable[[np.ndarray], list[int]]], tuple[str, int]]


@pytest.fixture(scope="module")
def by_pytorch(video_bundle: Path, video_checkpoint: Path) -> Answer:
    reference, pipeline = Reference(load_checkpoint(str(video_checkpoint))), Pipeline.load(video_bundle)

    def answer(video: str, question: str, choose: Callable[[np.ndarray], list[int]]) -> tuple[str, int]:
        """Args: choose: of one frame's points, int64 [N], the tokens that it keeps."""
        prompt, numbers = f"Question: {question} Answer:", VIDEOS[video]
        pixels = torch.cat([reference.pixel_values([PICTURES[number]]) for number in numbers])
        instructions = reference.instructions([prompt] * len(numbers))
        query_embeds, evidence = reference.query_embeds(reference.image_embeds(pixels).embeds, None, instructions)
        points = count_points([layer.numpy() for layer in evidence.cross_attention if layer is not None])
        kept = [24 * frame + query for frame, scores in enumerate(points) for query in sorted(choose(scores))]
        ids, most = reference.tokenize(prompt), pipeline.manifest.text.max_new_tokens
        embeds = query_embeds.reshape(24 * len(numbers), -1)
        found = reference.continue_greedily(embeds, kept, "original", ids, most)
        return pipeline.detokenize(found.token_ids), len(kept)

    return answer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .jsonl file with a folder for each video, a missing one, an empty one and one of too many frames among them."""
    folder = tmp_path_factory.mktemp("videos")
    for name, numbers in {**VIDEOS, "empty": [], "long": [0] * 7}.items():
        (folder / name).mkdir()
        for place, number in enumerate(numbers):
            PICTURES[number].save(folder / name / f"frame_{place + 9}.png")
    lines = [
        {"image": name, "question": question, "answers": ["nothing"], "id": f"{name}: {question}"}
        for name in (*VIDEOS, "empty", "missing", "long")
        for question in QUESTIONS
    ]
    (folder / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "asked.jsonl"


def evaluated(bundle: Path, data: Path, *arguments: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report, and predictions by id."""
    file = data.with_suffix(".predictions")
    file.unlink(missing_ok=True)
    given = ["--data", str(data), "--positions", "original", "--predictions", str(file), "--json", *arguments]
    result = CliRunner().invoke(app, [str(bundle), *given])
    assert result.exit_code == 0, result.output
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return json.loads(result.stdout), {line["id"]: line for line in lines if "id" in line}


def first(count: int) -> Callable[[np.ndarray], list[int]]:
    return lambda scores: sorted(range(24), key=lambda query: (-scores[query], query))[:count]


def share(scores: np.ndarray) -> list[int]:
    return next(kept for k in range(1, 25) if scores[(kept := first(k)(scores))].sum() >= 0.25 * scores.sum())


def test_every_frame_keeps_its_own(video_bundle: Path, data: Path, by_pytorch: Answer) -> None:
    """Videos of different length, in batches that a video may not be cut by."""
    arguments = ["--methods", "catp", "--ratios", "0,0.5", "--keep-mass", "0.25", "--batch-size", "3"]
    report, predictions = evaluated(video_bundle, data, *arguments)
    answers = set()
    for video, numbers in VIDEOS.items():
        for question in QUESTIONS:
            found = predictions[f"{video}: {question}"]
            wanted = [by_pytorch(video, question, choose) for choose in (first(24), first(12), share)]
            assert list(zip(found["answers"], found["num_kept"])) == wanted
            assert found.get("frames", 1) == len(numbers)
            answers.add(tuple(found["answers"]))
    assert len(answers) == 8  # videos and questions matter
    assert [score["tokens_kept"] for score in report["scores"][:2]] == [24, 12] and report["questions"] == 8
    reasons = {skipped["id"].split(":")[0]: skipped["reason"] for skipped in report["skipped_first"]}
    assert report["skipped"] == 6 and "the folder is empty" in reasons["empty"] and "missing" in reasons["missing"]
    assert reasons["long"].endswith("tokens after 7 frames: this model takes 0")


def test_random_tokens_are_drawn_for_every_frame(video_bundle: Path, data: Path, by_pytorch: Answer) -> None:
    _, predictions = evaluated(video_bundle, data, "--methods", "random", "--ratios", "0.5", "--seed", "5")
    for question in QUESTIONS:
        id = f"two: {question}"
        drawn = iter([random_scores(5, id, 24), random_scores(5, f"{id} 1", 24)])
        wanted = by_pytorch("two", question, lambda _, drawn=drawn: first(12)(next(drawn)))
        found = predictions[id]
        assert (found["answers"], found["num_kept"]) == ([wanted[0]], [24])
