"""catp-calibrate schedule where query tokens are voted for: schedules by data, and one budget for both prunings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app as calibrate
from catp.calibration.encoder.answering import Answered
from catp.calibration.encoder.report import EncoderReport, EncoderSetting, score
from catp.calibration.encoder.search import Searched, cheapest
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle, write_manifest
from catp.runtime.commands.inspect import app as inspect

pytestmark = pytest.mark.heavy


def schedule(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(calibrate, ["schedule", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


@pytest.fixture
def bundle(twice_pruned_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(twice_pruned_bundle, tmp_path / "bundle"))


def test_the_most_accurate_schedule_of_one_work_is_written(bundle: Path, demo_bundle: Path, tmp_path: Path) -> None:
    before = open_bundle(bundle).manifest
    report = tmp_path / "report.json"
    code, output = schedule(
        bundle, "--flops", 0.7, "--against", demo_bundle, "--ratio", 0.25, "--limit", 80, "--max-accuracy-drop", 0.9,
        "--report", report,
    )  # fmt: skip
    assert code == 0, output
    after = open_bundle(bundle).manifest
    assert after.vote == before.vote  # the ratio was given, not chosen
    found = json.loads(report.read_text())
    dense, *tried = found["search"]["scores"]
    nothing = {"kept_tokens": None, "temperature": None, "keep_mass": None}
    assert dense["setting"] == {"name": "dense", "ratio": 0.25} | nothing
    assert len(tried) >= 4 and tried[0]["setting"]["name"] == "0.7: same share in each layer"
    assert all(row["share"] == pytest.approx(0.7, abs=0.015) and row["setting"]["ratio"] == 0.25 for row in tried)
    best = max(tried, key=lambda row: row["accuracy"])
    assert best["accuracy"] > min(row["accuracy"] for row in tried)
    pruning = after.encoder_pruning
    assert pruning is not None and pruning.confirmed is not None and pruning.kept_tokens is not None
    assert list(pruning.kept_tokens) == best["setting"]["kept_tokens"]
    assert best["setting"]["name"] in pruning.source
    assert pruning.gflops_pruned == pytest.approx(pruning.gflops(pruning.kept_tokens))
    assert pruning.confirmed.ratios == (0.25, 0.25)
    assert pruning.confirmed.after == found["scores"][-1]["accuracy"] < pruning.confirmed.before
    # The halves are other questions, and together they are all.
    assert found["questions"] + found["search"]["questions"] == 80 and found["scores"][-1]["answer_gflops"] is None


def test_one_budget_for_both_prunings(bundle: Path, demo_bundle: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    code, output = schedule(
        bundle, "--flops", "0.7,0.85", "--ratios", "0.25,0,0.75", "--against", demo_bundle, "--limit", 100,
        "--max-accuracy-drop", 0.6, "--report", report,
    )  # fmt: skip
    assert code == 0, output
    found = json.loads(report.read_text())
    dense, *tried = found["search"]["scores"]
    assert dense["setting"]["ratio"] == 0
    best = {share: max(rows_of(tried, share, 0), key=lambda row: row["accuracy"]) for share in ("0.85", "0.7")}
    pairs = [*best.values(), *(row for row in tried if row["setting"]["ratio"] > 0)]
    assert len(pairs) == 6
    for row in pairs:  # at the other ratios with the schedule that was best without any
        assert row["setting"]["kept_tokens"] == best[row["setting"]["name"].split(":")[0]]["setting"]["kept_tokens"]
    within = [row for row in pairs if row["low"] >= -0.6]
    cheapest = min(within, key=lambda row: row["answer_gflops"])
    assert 0 < len(within) < 6 and cheapest["answer_gflops"] < dense["answer_gflops"]
    manifest = open_bundle(bundle).manifest
    pruning, vote = manifest.encoder_pruning, manifest.pruning
    assert pruning is not None and pruning.confirmed is not None
    assert list(pruning.kept_tokens or ()) == cheapest["setting"]["kept_tokens"]
    assert vote.ratio == cheapest["setting"]["ratio"] and vote.keep_mass is None
    assert pruning.confirmed.ratios == (0, vote.ratio) and f"ratio {vote.ratio:g}" in output
    assert "the cheapest of 6 pairs of share and ratio within 0.6" in pruning.source
    shown = " ".join(CliRunner().invoke(inspect, [str(bundle)]).output.split())
    assert f"% dense at ratio 0, {100 * pruning.confirmed.after:.1f} % pruned at ratio {vote.ratio:g} (" in shown
    # By default the bundle now answers as it was confirmed.
    kept = Pipeline.load(bundle).generate(["export/demo/images/scene-a.png"], ["Question: a Answer:"])[0].kept_indices
    assert len(kept) == round(32 * (1 - vote.ratio))


def rows_of(rows: list[dict[str, Any]], share: str, ratio: float) -> list[dict[str, Any]]:
    return [row for row in rows if row["setting"]["name"].startswith(f"{share}:") and row["setting"]["ratio"] == ratio]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--flops", 0.5, "--max-accuracy-drop", 0.05), "at ratio 0.5 is not confirmed"),
        (
            ("--flops", "0.6,0.5", "--ratios", "0.5,0.75", "--max-accuracy-drop", 0.05),
            "no pair of encoder share and ratio stays within 0.05",
        ),
    ],
)
def test_what_costs_too_much_changes_nothing(
    bundle: Path, demo_bundle: Path, tmp_path: Path, arguments: tuple[object, ...], words: str
) -> None:
    before, report = (bundle / "catp.json").read_bytes(), tmp_path / "report.json"
    code, output = schedule(bundle, "--against", demo_bundle, "--limit", 40, "--report", report, *arguments)
    assert code == 1 and words in output and "nothing was changed" in output
    assert "pictures can't show that so little is lost: give 146 or more" in output
    assert (bundle / "catp.json").read_bytes() == before
    found = json.loads(report.read_text())  # what was tried is kept all the same
    assert len(found["search"]["scores"]) > 3 and (found["questions"] == 0) == ("no pair" in words)


def test_what_can_not_be_compared(bundle: Path, demo_bundle: Path, retrieval_bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(demo_bundle, tmp_path / "other"))
    manifest = open_bundle(other).manifest
    vote = manifest.pruning.model_copy(update={"positions": "compact"})
    write_manifest(other, manifest.model_copy(update={"vote": vote}))
    for arguments, words in (
        (("--flops", 0.8, "--against", other), "it votes by catp (compact positions), the other by catp (original"),
        (("--flops", 0.8, "--against", retrieval_bundle), "another checkpoint"),
        (("--flops", 0.8, "--against", demo_bundle, "--ratio", 0.5, "--ratios", "0,0.5"), "--ratio and --ratios"),
        (("--flops", 0.8, "--against", demo_bundle, "--ratio", 1), "0 <= ratio < 1"),
        (("--flops", 0.8, "--against", demo_bundle, "--ratios", "0,x"), "ratios '0,x': give numbers"),
        (("--flops", 0.99, "--against", demo_bundle), "leaves 0.89 of the encoder's work at most"),
    ):
        code, output = schedule(bundle, *arguments)
        assert code == 2 and words in output, (words, output)
    manifest = open_bundle(bundle).manifest
    vote = manifest.pruning.model_copy(update={"keep_mass": 0.5})
    write_manifest(bundle, manifest.model_copy(update={"vote": vote}))
    code, output = schedule(bundle, "--flops", "0.8,0.7", "--against", demo_bundle)
    assert code == 2 and "this bundle keeps a share of the votes (0.5)" in output
    code, output = schedule(bundle, "--flops", 0.8, "--against", demo_bundle)
    assert code == 2 and "it votes by catp" in output  # whose own share is another


def test_the_cheapest_within_the_budget() -> None:
    right = np.ones((400, 4))
    right[:8, 2], right[:200, 3] = 0, 0  # the second one loses two points, the third half of all
    settings = [EncoderSetting(name=name) for name in ("dense", "dear", "cheap", "wrong")]
    answered = Answered(right, tuple(map(str, range(400))), np.array([0.0, 5.0, 4.0, 3.0]), 0)
    scores = score(answered, settings, 6.0, 0, [16.0, 15.0, 14.0, 13.0])
    assert [one.answer_gflops for one in scores] == [16, 15, 14, 13]
    searched = Searched(report=EncoderReport.model_construct(), pairs=scores[1:], even={})
    chosen = [cheapest([searched], budget) for budget in (0.7, 0.05, 0.02, 0.001)]
    assert [one and one[1].setting.name for one in chosen] == ["wrong", "cheap", "dear", None]
    alone = Searched(report=EncoderReport.model_construct(), pairs=scores[3:], even={})
    assert cheapest([alone], 0.02) == (0, scores[3])  # the other half judges it


def test_the_best_rule_of_each_pair() -> None:
    """The most accurate rule of one share, however little less another one computes; the cheapest of the shares."""

    def searched(*pairs: tuple[float, float, float]) -> Searched:
        scores = (dense.model_copy(update=dict(zip(("accuracy", "low", "gflops"), pair))) for pair in pairs)
        return Searched(report=EncoderReport.model_construct(), pairs=tuple(scores), even={})

    answered = Answered(np.ones((400, 1)), tuple(map(str, range(400))), np.array([9.0]), 0)
    (dense,) = score(answered, [EncoderSetting(name="dense")], 9.0, 0)
    careful = searched((0.98, -0.01, 5.1), (0.90, -0.15, 3.0))
    hasty = searched((0.97, -0.02, 5.0), (0.93, -0.06, 3.1))
    assert cheapest([careful, hasty], 0.03) == (0, careful.pairs[0])
    assert cheapest([hasty, careful], 0.03) == (1, careful.pairs[0])
    assert cheapest([careful, hasty], 0.1) == (1, hasty.pairs[1])
    assert cheapest([careful, hasty], 0.2) == (1, hasty.pairs[1])  # both are within, and it is more accurate
    assert cheapest([careful, careful], 0.2) == (0, careful.pairs[1])
    one = searched((0.9, -0.1, 5.0))
    assert cheapest([one, one], 0.05) is None  # of two something is chosen: a rule that loses too much is not


def test_the_rule_is_chosen_too(bundle: Path, demo_bundle: Path, tmp_path: Path) -> None:
    by_chance, report = tmp_path / "by-chance", tmp_path / "report.json"
    options = EncoderOptions(rule="random", flops=0.8)
    export_bundle("export/demo/checkpoint", by_chance, encoder=options)
    before = (by_chance / "catp.json").read_bytes()
    code, output = schedule(
        by_chance, bundle, "--flops", 0.8, "--ratios", "0.25", "--against", demo_bundle, "--limit", 60,
        "--max-accuracy-drop", 0.9, "--report", report,
    )  # fmt: skip
    assert code == 0 and f"{by_chance}: random, merge one" in output, output
    assert f"{bundle}: by default its vision encoder now keeps" in output
    assert (by_chance / "catp.json").read_bytes() == before
    pruning = open_bundle(bundle).manifest.encoder_pruning
    assert pruning is not None and pruning.rule == "tome" and pruning.confirmed is not None
    assert pruning.source.endswith("the rule the best of random (one), tome (nearest)")
    found = json.loads(report.read_text())
    (other,) = found["other_rules"]
    assert (found["rule"], found["search"]["rule"], other["rule"]) == ("tome", "tome", "random")
    best = max(row["accuracy"] for row in found["search"]["scores"][1:])
    assert best > max(row["accuracy"] for row in other["scores"][1:])
    code, output = schedule(bundle, bundle, "--flops", 0.8, "--against", demo_bundle)
    assert code == 2 and "both prune by tome (nearest) in layers" in output
    manifest = open_bundle(by_chance).manifest
    write_manifest(
        by_chance, manifest.model_copy(update={"vote": manifest.pruning.model_copy(update={"positions": "compact"})})
    )
    code, output = schedule(by_chance, bundle, "--flops", 0.8, "--ratios", "0", "--against", demo_bundle)
    assert code == 2 and "are voted for in other ways" in output
    # Another default is no other vote where a ratio is given, as the search before has written one.
    write_manifest(by_chance, manifest.model_copy(update={"vote": manifest.pruning.model_copy(update={"ratio": 0.4})}))
    again = ("--flops", 0.8, "--against", demo_bundle, "--limit", 20, "--max-accuracy-drop", 0.95)
    code, output = schedule(by_chance, bundle, *again)
    assert code == 2 and "and give --ratio" in output
    code, output = schedule(by_chance, bundle, *again, "--ratio", 0.25)
    assert code in (0, 1) and "voted for" not in output


def test_votes_that_depend_on_the_question(instructblip_checkpoint: Path, tmp_path: Path) -> None:
    dense, pruned = tmp_path / "dense", tmp_path / "pruned"
    export_bundle(str(instructblip_checkpoint), dense, ratio=0.3)
    export_bundle(str(instructblip_checkpoint), pruned, ratio=0.3, encoder=EncoderOptions(rule="cls", flops=0.9))
    pipeline = Pipeline.load(dense)
    pictures = sorted(Path("export/demo/images").resolve().glob("*.png"))
    asked = []
    for picture in pictures:
        for question in ("what is in the bottom right?", "what color is it?"):
            (answer,) = pipeline.generate([picture], [f"Question: {question} Answer:"], 0.0, num_beams=1)
            asked.append({"image": str(picture), "question": question, "answers": [answer.answer]})
    data = tmp_path / "asked.jsonl"
    data.write_text("\n".join(map(json.dumps, asked)))
    report = tmp_path / "report.json"
    arguments = (pruned, "--flops", "0.9", "--ratios", "0,0.5", "--against", dense, "--data", data, "--report", report)
    code, output = schedule(*arguments, "--max-accuracy-drop", 0.99)
    # Random weights may lose every answer by pruning; without it, each is the one that the pipeline gave.
    assert (code, "now keeps" in output) in ((0, True), (1, False)) and report.exists(), output
    dense_row, *tried = json.loads(report.read_text())["search"]["scores"]
    assert dense_row["accuracy"] == 1 and [row["setting"]["ratio"] for row in tried][-1] == 0.5
    assert dense_row["answer_gflops"] > tried[0]["answer_gflops"] > tried[-1]["answer_gflops"]
