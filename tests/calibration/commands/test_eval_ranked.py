"""catp-eval with a list of answers: of each question the one that `Pipeline.rank` finds likeliest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from catp.calibration.accuracy.asking import Asking
from catp.calibration.commands.eval import app
from catp.calibration.data import open_data
from catp.calibration.data.metrics import JUDGES
from catp.runtime import EncoderWish, Pipeline, UsageError
from catp.runtime.bundle.generation_settings import GREEDY

ANSWERS = ["a red circle", "a black diamond", "yellow", "nothing", "center", "bottom left", "star"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    (tmp_path / "answer_list.json").write_text(json.dumps(ANSWERS))
    return tmp_path / "answer_list.json"


def ranked(bundle: Path, count: int, share: float | None = None) -> tuple[dict[str, str], float]:
    """By question, what comes first, and the share that is right."""
    questions, pipeline = list(open_data("demo").subset(count, None, 2024)), Pipeline.load(bundle)
    best = [
        pipeline.rank([question.image], [question.question], ANSWERS, encoder=EncoderWish(flops=share))[0][0].answer  # type: ignore[list-item]
        for question in questions
    ]
    right = [JUDGES["exact match"](text, question.answers) for text, question in zip(best, questions)]
    return {question.id: text for question, text in zip(questions, best)}, float(np.mean(right))


def test_answers_are_those_that_rank_first(fully_pruned_bundle: Path, listed: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "p.jsonl"
    result = run(fully_pruned_bundle, "--limit", 9, "--answers", listed, "--predictions", predictions, "--json")
    assert result.exit_code == 0, result.output
    wanted, share = ranked(fully_pruned_bundle, 9)
    found = [json.loads(line) for line in predictions.read_text().splitlines()[1:]]
    assert {line["id"]: line["answers"][0] for line in found} == wanted and len(set(wanted.values())) > 1
    report = json.loads(result.stdout.splitlines()[-1])
    assert report["scores"][0]["accuracy"] == pytest.approx(share)
    other = run(fully_pruned_bundle, "--limit", 9, "--answers", ",".join(ANSWERS[1:]), "--predictions", predictions)
    assert other.exit_code == 2 and "other answers to rank" in " ".join(other.stderr.split())


def test_answers_after_an_encoder_that_prunes(fully_pruned_bundle: Path, listed: Path) -> None:
    result = run(fully_pruned_bundle, "--limit", 8, "--answers", listed, "--encoder-flops", "0.8,0.5", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    shares = [ranked(fully_pruned_bundle, 8, share)[1] for share in (0.8, 0.5)]
    assert [score["accuracy"] for score in report["scores"]] == pytest.approx(shares)
    assert report["answers"] == Asking(answers=tuple(ANSWERS)).answers_digest


def test_what_can_not_be_ranked_is_refused(demo_bundle: Path, vqa_bundle: Path, listed: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    for arguments, words in (
        (
            [demo_bundle, "--answers", listed],
            "answers of BLIP-2 with a decoder-only language model can't be ranked",
        ),
        ([vqa_bundle, "--answers", listed, "--num-beams", 3], "answers: they are ranked and none is generated"),
        ([vqa_bundle, "--answers", tmp_path / "empty.txt"], "give at least one"),
        ([vqa_bundle, "--answers", tmp_path / "missing.json"], "missing.json"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2 and words in " ".join(result.stderr.split()), words
        assert result.stderr.count("error:") == 1
    with pytest.raises(UsageError, match="ranked"):
        Asking(generation=GREEDY.override(num_beams=2), answers=("a",))
