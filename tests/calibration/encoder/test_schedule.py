"""catp-calibrate schedule and catp-eval on an encoder that prunes, through the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app as calibrate
from catp.calibration.commands.eval import app as evaluate
from catp.calibration.commands.explain import app as explain
from catp.calibration.data import open_data
from catp.calibration.encoder.answering import Answered
from catp.calibration.encoder.counting import find_schedule
from catp.calibration.encoder.report import EncoderSetting, score
from catp.export.demo.vqa import DENSE
from catp.export.exporter import export_bundle
from catp.runtime import EncoderWish, Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.providers.base import to_host


def command(app: object, *arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])  # type: ignore[arg-type]
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def test_the_temperature_leaves_the_share_that_was_asked_for(dynamic_bundle: Path) -> None:
    counting = Pipeline.load(dynamic_bundle)
    spec = counting.manifest.encoder_pruning
    assert spec is not None
    questions = list(open_data("demo").subset(8, None, 3))
    found = find_schedule(counting, questions, 0.5, 8)
    work, counts = [], []
    for question in questions:  # counted anew, picture by picture
        wish = EncoderWish(temperature=found.temperature)
        counts.append(to_host(counting.encode(counting.preprocess([question.image]), encoder=wish)["kept_counts"]))
        work.append(spec.gflops(counts[-1].tolist()) / spec.gflops_dense)
    assert np.mean(work) == pytest.approx(found.share) and found.share == pytest.approx(0.5, abs=0.05)
    assert spec.check(found.kept_tokens) == found.kept_tokens
    assert np.abs(np.mean(counts, 0) - found.kept_tokens).max() <= 0.1 * 144 + 2
    assert spec.gflops(found.kept_tokens) / spec.gflops_dense == pytest.approx(0.5, abs=0.05)


def test_differences_are_paired_with_the_first_setting() -> None:
    right = np.array([[1, 1], [1, 0], [1, 1], [0, 0]] * 10, np.float64)
    answered = Answered(right, tuple(map(str, range(40))), np.array([0.0, 3.0]), 0)
    dense, pruned = score(answered, [EncoderSetting(name="dense"), EncoderSetting(name="half")], 6.0, 0)
    assert (dense.accuracy, pruned.accuracy, pruned.difference) == (0.75, 0.5, -0.25)
    assert (dense.share, pruned.share) == (1.0, 0.5)
    assert pruned.low <= pruned.difference_95[0] < -0.25 < pruned.difference_95[1] < 0


@pytest.fixture
def bundle(pruned_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pruned_bundle, tmp_path / "bundle"))


def test_a_confirmed_schedule_is_written(bundle: Path, dynamic_bundle: Path, tmp_path: Path) -> None:
    before = open_bundle(bundle).manifest.encoder_pruning
    report = tmp_path / "report.json"
    code, output = command(
        calibrate, "schedule", bundle, "--flops", 0.6, "--against", dynamic_bundle, "--limit", 48, "--pictures", 6,
        "--max-accuracy-drop", 0.5, "--report", report,
    )  # fmt: skip
    assert code == 0, output
    after = open_bundle(bundle).manifest.encoder_pruning
    assert before is not None and after is not None and after.confirmed is not None
    assert after.kept_tokens != before.kept_tokens and after.source.startswith("catp-calibrate schedule: mean counts")
    found = json.loads(report.read_text())
    assert [row["setting"]["name"] for row in found["scores"]][::3] == ["dense", "schedule"]
    assert found["scores"][-1]["setting"]["kept_tokens"] == list(after.kept_tokens or ())
    assert found["scores"][-1]["accuracy"] == after.confirmed.after
    assert found["scores"][0]["accuracy"] == after.confirmed.before >= 0.7
    assert after.gflops_pruned == pytest.approx(0.6 * after.gflops_dense, rel=0.05)


def test_a_schedule_that_costs_too_much_changes_nothing(bundle: Path, dynamic_bundle: Path) -> None:
    before = (bundle / "catp.json").read_bytes()
    code, output = command(
        calibrate, "schedule", bundle, "--flops", 0.25, "--against", dynamic_bundle, "--limit", 40, "--pictures", 4,
        "--max-accuracy-drop", 0.01,
    )  # fmt: skip
    assert code == 1 and "is not confirmed" in output and "nothing was changed" in output
    assert (bundle / "catp.json").read_bytes() == before


def test_what_can_not_be_calibrated(bundle: Path, dynamic_bundle: Path, vqa_bundle: Path, tmp_path: Path) -> None:
    dense = tmp_path / "dense"
    export_bundle(str(DENSE), dense)
    for arguments, words in (
        ((bundle, "--flops", 1.5, "--against", dynamic_bundle), "flops 1.5: a share"),
        ((bundle, "--flops", "half", "--against", dynamic_bundle), "flops 'half': give numbers separated by commas"),
        ((bundle, "--flops", "0.7,0.5", "--against", dynamic_bundle), "it counts tokens for one share of the work"),
        ((bundle, "--flops", 0.6, "--ratios", "0,0.5", "--against", dynamic_bundle), "no query tokens to leave out"),
        ((bundle, "--flops", 0.6, "--ratio", 0.5, "--against", dynamic_bundle), "no query tokens to leave out"),
        ((tmp_path, "--flops", 0.5, "--against", dynamic_bundle), "no bundle"),
        ((vqa_bundle, "--flops", 0.5, "--against", dynamic_bundle), "prunes nothing"),
        ((dynamic_bundle, "--flops", 0.5, "--against", dynamic_bundle), "dynamic form"),
        ((bundle, "--flops", 0.5, "--against", bundle), "it has a schedule"),
        ((bundle, "--flops", 0.5, "--against", vqa_bundle), "another checkpoint"),
        ((bundle, "--flops", 0.5, "--against", dense), "another checkpoint"),  # config.json is the same
        ((bundle, "--flops", 0.5, "--against", dynamic_bundle, "--data", "nowhere"), "accepted: demo, easy-vqa"),
    ):
        code, output = command(calibrate, "schedule", *arguments)
        assert code == 2 and words in " ".join(output.split()), (words, output)


def test_eval_compares_shares_of_the_work(bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "eval.json"
    code, text = command(evaluate, bundle, "--encoder-flops", "0.9,0.3", "--limit", 60, "-o", output)
    assert code == 0, text
    little, less = json.loads(output.read_text())["scores"]
    assert little["share"] == pytest.approx(0.9, abs=0.02) and less["share"] < 0.35
    assert little["accuracy"] > less["accuracy"]
    code, text = command(evaluate, bundle, "--encoder-flops", "0.5", "--ratios", "0.5")
    assert code == 2 and "--ratios: not with shares" in " ".join(text.split())
    code, text = command(evaluate, bundle, "--encoder-flops", "0.5", "--keep-mass", "0.5", "--positions", "compact")
    assert code == 2 and "--keep-mass, --positions: not with shares" in " ".join(text.split())
    code, text = command(evaluate, bundle, "--encoder-flops", "")
    assert code == 2 and "encoder flops '': give numbers separated by commas" in " ".join(text.split())


def test_explain_draws_what_each_layer_keeps(bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "patches.png"
    arguments = ("--image", "export/demo/images/scene-a.png", "--prompt", "what is in the bottom right?")
    code, text = command(explain, bundle, *arguments, "-o", picture, "--encoder-flops", 0.4, "--json")
    assert code == 0, text
    found = json.loads(text[text.index("{") : text.rindex("}") + 1])
    spec = open_bundle(bundle).manifest.encoder_pruning
    assert spec is not None
    kept = EncoderWish(flops=0.4).schedule(spec)
    assert [len(layer["kept_patches"]) + layer["merged_tokens"] - 1 for layer in found["layers"]] == list(kept)
    assert picture.read_bytes()[:4] == b"\x89PNG"
