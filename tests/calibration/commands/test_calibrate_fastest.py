"""catp-calibrate fastest as a user calls it; what is fast on this machine is not asserted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from bundles import edit_manifest
from typer.testing import CliRunner, Result

from catp.calibration.commands.calibrate import app
from catp.calibration.fastest.report import FastestReport
from catp.runtime.bundle.folder import open_bundle


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["fastest", *map(str, arguments)])


@pytest.fixture
def copies(demo_bundle: Path, tmp_path: Path) -> list[Path]:
    return [Path(shutil.copytree(demo_bundle, tmp_path / name)) for name in ("one", "two")]


FEW = ("--limit", 60, "--rounds", 6, "--new-tokens", 2, "--ratios", "0,0.1,0.9", "--max-accuracy-drop", 0.2)


@pytest.mark.heavy  # ten seconds
def test_the_choice_follows_from_the_report_and_a_killed_run_goes_on(copies: list[Path], tmp_path: Path) -> None:
    report, plot, progress = tmp_path / "report.json", tmp_path / "pareto.png", tmp_path / "progress.jsonl"
    files = ("-o", report, "--plot", plot, "--progress", progress)
    result = call(*copies, *FEW, *files)
    assert result.exit_code == 0, result.output
    found = FastestReport.model_validate_json(report.read_text())
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert [(one.triple.bundle, one.triple.ratio) for one in found.candidates] == [
        (name, ratio) for name in ("one", "two") for ratio in (0, 0.1, 0.9)
    ]
    ms = np.array([one.milliseconds for one in found.candidates])
    assert ms.shape == (6, 6) and (ms > 0).all() and found.machine.cpu and found.machine.versions["onnxruntime"]
    accuracy = np.array([one.accuracy for one in found.candidates])
    assert [one.within for one in found.candidates] == [True, True, False] * 2  # 0.9 keeps 3 of 32 tokens
    assert accuracy[:3].tolist() == accuracy[3:].tolist()  # copies
    medians = np.median(ms, axis=1)
    within = [place for place, one in enumerate(found.candidates) if one.within]
    fastest = min(within, key=lambda place: medians[place])
    for place, one in enumerate(found.candidates):
        assert one.difference == pytest.approx(accuracy[place] - accuracy[0])
        assert (one.behind is None) == (place == fastest or not one.within)
        if one.speedup is not None:
            assert one.speedup.median == pytest.approx(np.median(ms[0] / ms[place]))
        dominated = (medians <= medians[place]) & (accuracy >= accuracy[place])
        dominated &= (medians < medians[place]) | (accuracy > accuracy[place])
        assert one.on_front == (not dominated.any())
    tied = [p for p in within if (behind := found.candidates[p].behind) is None or behind.interval_95[0] <= 1]  # type: ignore[index]
    expected = min(tied, key=lambda p: (max(0.0, -found.candidates[p].difference), medians[p]))
    assert (found.attempts[0].candidate if found.attempts else found.chosen) == expected
    assert found.chosen is not None
    chosen = found.candidates[found.chosen].triple
    assert open_bundle(tmp_path / chosen.bundle).manifest.pruning.ratio == chosen.ratio

    whole = progress.read_bytes()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 1 + 6 + (2 + sum(not one.confirmed for one in found.attempts) if found.attempts else 0)
    progress.write_bytes(b"".join(lines[:3]) + lines[3][:40])  # killed in the midst of a line
    result = call(*copies, *FEW, *files)  # into a manifest that has the choice by now
    assert result.exit_code == 0, result.output
    again = FastestReport.model_validate_json(report.read_text())
    same = ("triple", "accuracy", "difference", "interval_95", "low", "tokens_kept", "within")
    for before, after in zip(found.candidates, again.candidates, strict=True):
        assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]
        assert before.milliseconds != after.milliseconds  # measured anew
    assert progress.read_bytes().splitlines()[:7] == whole.splitlines()[:7]

    result = call(*copies, *FEW, *files, "--seed", 1)
    assert result.exit_code == 2 and "begun with seed 2024, not 1" in " ".join(result.stderr.split())


@pytest.mark.heavy
def test_what_is_answered_is_not_asked_again(copies: list[Path], tmp_path: Path) -> None:
    """A result that was written is believed: here it says that nothing but the second bundle's 0.1 is right."""
    progress, report = tmp_path / "progress.jsonl", tmp_path / "report.json"
    arguments = (*copies, *FEW, "--time-within", "--progress", progress, "-o", report)
    assert call(*arguments).exit_code == 0
    header, *lines = progress.read_text().splitlines()
    cells = [json.loads(line) for line in lines]
    for cell in cells[1:4]:
        cell["right"] = [0.0] * len(cell["right"])
    progress.write_text("\n".join([header, *map(json.dumps, cells)]) + "\n")
    assert call(*arguments).exit_code == 0
    found = FastestReport.model_validate_json(report.read_text())
    assert [one.accuracy for one in found.candidates[1:4]] == [0.0] * 3
    assert [bool(one.milliseconds) for one in found.candidates] == [one.within for one in found.candidates]


def test_a_budget_that_nothing_meets_changes_nothing(copies: list[Path], tmp_path: Path) -> None:
    before = [(copy / "catp.json").read_bytes() for copy in copies]
    report = tmp_path / "report.json"
    arguments = ("--limit", 40, "--ratios", "0.5,0.9", "--max-accuracy-drop", 0.001, "--time-within", "-o", report)
    result = call(copies[0], *arguments)
    printed = " ".join(result.stderr.split())
    assert result.exit_code == 1 and "nothing stays within 0.001" in printed and "nothing was changed" in printed
    assert [(copy / "catp.json").read_bytes() for copy in copies] == before
    found = FastestReport.model_validate_json(report.read_text())
    assert found.chosen is None and found.timing is None and not any(one.milliseconds for one in found.candidates)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-accuracy-drop", "1.5"], "0 < drop < 1"),
        (["--ratios", "a"], "separated by commas"),
        (["--encoder-flops", "0.5"], "no vision encoder of"),
        (["--encoder-flops", "x"], "above 0 and below 1"),
        (["--ratios", "0"], "nothing to choose among"),
        (["--plot", "a.pdf"], "ends in .png"),
        (["--report", "/nowhere/report.json"], "there is no folder"),
        (["--progress", "/nowhere/p.jsonl"], "there is no folder"),
        (["--rounds", "5"], "--rounds"),
        (["--prompt-tokens", "5000"], "give fewer"),
    ],
)
def test_what_can_not_be_is_said_in_one_line(demo_bundle: Path, arguments: list[str], message: str) -> None:
    result = call(demo_bundle, "--limit", 20, *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.stderr.split()) and "Traceback" not in result.output


def test_bundles_of_other_checkpoints_are_refused(copies: list[Path]) -> None:
    first, second = copies
    manifest = json.loads((second / "catp.json").read_text())
    calibration = {"source_sha256": {"language_model": "0" * 64}, "data": "demo", "samples": 1, "seed": 0,
                   "metric": "exact match", "questions": 1, "accuracy": [], "kept_overlap": 1.0}  # fmt: skip
    for changes, message in (
        ({"model": manifest["model"] | {"id": "other"}}, "its model is other, that of"),
        ({"model": manifest["model"] | {"family": "BLIP"}}, "its family is BLIP, that of"),
        ({"calibration": calibration}, "was calibrated from another bundle"),
    ):
        edit_manifest(second, **changes)
        result = call(first, second)
        assert result.exit_code == 2 and message in " ".join(result.stderr.split()), result.output
        edit_manifest(second, **{"calibration": None, **{name: manifest[name] for name in changes}})
    result = call(first, first)
    assert result.exit_code == 2 and "given twice" in " ".join(result.stderr.split())


def test_bundles_that_answer_nothing_are_refused(retrieval_bundle: Path) -> None:
    result = call(retrieval_bundle)
    assert result.exit_code == 2 and "generates no text" in " ".join(result.stderr.split())


@pytest.mark.heavy  # exports a bundle that prunes in its encoder
def test_schedules_stand_beside_the_dense_encoder(
    copies: list[Path], twice_pruned_bundle: Path, tmp_path: Path
) -> None:
    pruned = Path(shutil.copytree(twice_pruned_bundle, tmp_path / "pruned"))
    report = tmp_path / "report.json"
    arguments = ("--limit", 60, "--rounds", 6, "--new-tokens", 2, "--max-accuracy-drop", 0.9, "-o", report)
    shares = ("--ratios", "0,0.5", "--encoder-flops", "1,0.8,0.6")
    result = call(pruned, copies[0])
    assert result.exit_code == 2 and "always prunes" in " ".join(result.stderr.split())
    result = call(copies[0], pruned, *arguments, *shares)
    assert result.exit_code == 0, result.output
    found = FastestReport.model_validate_json(report.read_text())
    assert [(one.triple.bundle, one.triple.encoder_flops, one.triple.ratio) for one in found.candidates] == [
        *(("one", None, ratio) for ratio in (0, 0.5)),
        *(("pruned", share, ratio) for share in (0.8, 0.6) for ratio in (0, 0.5)),
    ]
    assert all(one.milliseconds for one in found.candidates) and found.chosen is not None
    chosen = found.candidates[found.chosen].triple
    if chosen.kept_tokens is not None:
        spec = open_bundle(pruned).manifest.encoder_pruning
        assert spec is not None and spec.kept_tokens == chosen.kept_tokens and spec.confirmed is not None
        assert spec.confirmed.questions == found.attempts[-1].questions
