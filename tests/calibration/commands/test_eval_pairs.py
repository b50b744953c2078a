"""catp-eval of a model of two images: NLVR2's file, the demo's pairs, shares of a vision encoder's work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from catp.calibration.commands.eval import app
from catp.calibration.data.demo_pairs import DemoPairs
from catp.calibration.encoder.answering import check_encoder
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import Pipeline, UsageError


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def nlvr2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve statements of the demo in NLVR2's form; the picture of the last one is broken."""
    folder = tmp_path_factory.mktemp("nlvr2")
    lines = []
    for number, question in enumerate(DemoPairs(12, 3)):
        for place, image in enumerate(question.images):
            image.save(folder / f"test1-{number}-0-img{place}.png")  # type: ignore[union-attr]
        label = "True" if question.answers == ("true",) else "False"
        lines.append({"sentence": question.question, "label": label, "identifier": f"test1-{number}-0-0"})
    (folder / "test1-11-0-img1.png").write_bytes(b"no picture")
    (folder / "test1.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder / "test1.json"


def right_of(bundle: Path, data: Path) -> list[bool]:
    """Each statement but the last by itself, through the pipeline."""
    pipeline = Pipeline.load(bundle)
    lines = [json.loads(line) for line in data.read_text().splitlines()][:-1]
    found = []
    for line in lines:
        stem = data.parent / line["identifier"].removesuffix("-0")
        (verdict,) = pipeline.judge([(f"{stem}-img0.png", f"{stem}-img1.png")], [line["sentence"]])
        found.append(verdict.true == (line["label"] == "True"))
    return found


def test_accuracy_is_that_of_the_verdicts(nlvr_bundle: Path, nlvr2: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    result = run(nlvr_bundle, "--data", nlvr2, "-o", report, "--predictions", tmp_path / "p.jsonl")
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    right = right_of(nlvr_bundle, nlvr2)
    assert found["questions"] == 11 and found["skipped"] == 1
    (score,) = found["scores"]
    assert score["accuracy"] == pytest.approx(sum(right) / 11) and 0 < sum(right) < 11
    assert score["interval_95"][0] < score["accuracy"] < score["interval_95"][1]
    assert "test1-11-0-img1.png" in result.stderr
    again = run(nlvr_bundle, "--data", nlvr2, "--predictions", tmp_path / "p.jsonl", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["scores"] == found["scores"]


def test_predictions_go_on_where_they_stopped(nlvr_bundle: Path, nlvr2: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.jsonl", tmp_path / "part.jsonl"
    assert run(nlvr_bundle, "--data", nlvr2, "--predictions", whole, "--batch-size", 3).exit_code == 0
    lines = whole.read_bytes().splitlines(keepends=True)
    part.write_bytes(b"".join(lines[:5]) + lines[5][:10])
    assert run(nlvr_bundle, "--data", nlvr2, "--predictions", part, "--batch-size", 3).exit_code == 0
    assert part.read_bytes() == whole.read_bytes()


def test_data_of_the_other_kind_is_refused(nlvr_bundle: Path, demo_bundle: Path, nlvr2: Path) -> None:
    wrong = run(demo_bundle, "--data", nlvr2)
    assert wrong.exit_code == 2 and "it is none for BLIP-2" in wrong.stderr
    other = run(nlvr_bundle, "--data", "easy-vqa")
    assert other.exit_code == 2 and "accepted: demo, or a file of NLVR2's statements" in other.stderr
    ratios = run(nlvr_bundle, "--limit", 4, "--ratios", "0.5")
    assert ratios.exit_code == 2 and "has no query tokens to leave out" in ratios.stderr
    for option in (["--num-beams", 3], ["--prompt-template", "{question}?"], ["--max-new-tokens", 4]):
        beams = run(nlvr_bundle, "--limit", 4, *option)
        assert beams.exit_code == 2 and "judges statements as they are, and generates no text" in beams.stderr


@pytest.mark.heavy
def test_shares_of_the_work_are_compared_in_pairs(nlvr_checkpoint: Path, nlvr2: Path, tmp_path: Path) -> None:
    export_bundle(str(nlvr_checkpoint), tmp_path / "bundle", encoder=EncoderOptions("cls", 0.7))
    report = tmp_path / "report.json"
    result = run(tmp_path / "bundle", "--data", nlvr2, "--encoder-flops", "0.7,0.5", "-o", report)
    assert result.exit_code == 0, result.output
    found = json.loads(report.read_text())
    first, second = found["scores"]
    assert first["accuracy"] == pytest.approx(sum(right_of(tmp_path / "bundle", nlvr2)) / 11)
    assert first["share"] == pytest.approx(0.7, abs=0.03) and second["share"] == pytest.approx(0.5, abs=0.03)
    assert found["skipped"] == 1 and found["images"] == 11
    with pytest.raises(UsageError, match="generates no text"):
        check_encoder(Pipeline.load(tmp_path / "bundle"), "catp-calibrate schedule")
