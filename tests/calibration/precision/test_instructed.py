"""Precision of a model whose Q-Former reads the question: what is observed, what it costs, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.demo import DemoScenes
from catp.calibration.precision.calibrator import split
from catp.calibration.precision.ranges.observation import Examples, ObservingProvider, answer_each
from catp.export.checkpoints.loading import load_checkpoint
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle

FEW = ["--samples", "16", "--questions", "10", "--max-accuracy-drop", "0.95", "--min-kept-overlap", "0.5"]


def test_calls_have_each_questions_words(
    instructblip_bundle: Path, instructblip_checkpoint: Path, questions: Callable[..., list[VqaExample]]
) -> None:
    tokenizer, seen = load_checkpoint(str(instructblip_checkpoint)).instruction_tokenizer, Examples()
    asked = questions(3)
    pipeline = Pipeline(open_bundle(instructblip_bundle), ObservingProvider({}, {}, seen))
    assert list(answer_each(pipeline, asked, (24, 12))) == [1, 2, 3]
    calls = seen.calls["qformer_voting"]
    wanted = [tokenizer(question.prompt).input_ids for question in asked]
    assert [call["instruction_ids"][0].tolist() for call in calls] == wanted and wanted[0] != wanted[1]
    assert [call["num_kept"].tolist() for call in calls] == [[24], [12], [24]]
    assert [call["instruction_mask"].all() for call in calls] == [True] * 3


def test_the_cost_is_what_asking_both_bundles_shows(instructblip_bundle: Path, tmp_path: Path) -> None:
    made = tmp_path / "int8"
    arguments = ["precision", str(instructblip_bundle), "--to", "int8", "--for", "cpu", *FEW, "--no-sensitivity"]
    result = CliRunner().invoke(app, [*arguments, "-o", str(made), "--json"])
    assert result.exit_code == 0, result.output
    manifest = open_bundle(made).manifest
    assert all(graph.quantization is not None for graph in manifest.graphs.values())
    assert manifest.graphs["qformer_voting"].quantization.tables == 2  # words and places of the question
    cost = json.loads(result.stdout)["calibration"]
    asked = split(DemoScenes(), 16, 10, 0).confirmation
    kept = []
    for folder in (instructblip_bundle, made):
        pipeline = Pipeline.load(folder, verify=False)
        # Dynamic scales are those of a call: rows are asked together as the command does.
        pixels = np.concatenate([pipeline.preprocess([question.image]) for question in asked])
        found = []
        for start in range(0, len(asked), 8):
            part = slice(start, start + 8)
            prompts = [question.prompt for question in asked[part]]
            scores = pipeline.votes(pipeline.encode(pixels[part], prompts)).scores
            found += np.argsort(-scores, 1, "stable")[:, :17].tolist()
        kept.append(found)
    overlap = np.mean([len(set(before) & set(after)) / 17 for before, after in zip(*kept)])
    assert cost["questions"] == 10 and cost["kept_overlap"] == pytest.approx(overlap) and overlap > 0.5
