"""Commands on a bundle that votes for no tokens: accuracy, times and precision as they are, and no ratio."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_reports import RATES
from typer.testing import CliRunner

from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app as bench
from catp.calibration.commands.calibrate import app as calibrate
from catp.calibration.commands.eval import app as evaluate
from catp.calibration.commands.explain import app as explain
from catp.calibration.data.demo import DEMO_SEED
from catp.export.demo import scenes
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.providers import open_provider

RUNNER = CliRunner()


def test_accuracy_is_that_of_the_bare_question(vqa_bundle: Path, tmp_path: Path) -> None:
    predictions = tmp_path / "predictions.jsonl"
    arguments = ["--limit", "5", "--json", "--predictions", str(predictions)]
    result = RUNNER.invoke(evaluate, [str(vqa_bundle), *arguments])
    assert result.exit_code == 0, result.output
    (score,) = json.loads(result.stdout)["scores"]
    assert (score["method"], score["ratio"], score["tokens_kept"]) == ("none", 0, 50)
    _, *lines = map(json.loads, predictions.read_text().splitlines())
    asked = list(scenes.examples(5, DEMO_SEED))
    questions = [example.question.prompt.removeprefix("Question: ").removesuffix(" Answer:") for example in asked]
    answers = Pipeline.load(vqa_bundle).generate([example.image for example in asked], questions)
    assert [line["answers"] for line in lines] == [[answer.answer] for answer in answers]


@pytest.mark.parametrize(
    ("app", "arguments", "words"),
    [
        (evaluate, ["--ratios", "0,0.5"], "ratios: BLIP for question answering has no query tokens to leave out"),
        (
            evaluate,
            ["--methods", "random"],
            "methods random: BLIP for question answering has no query tokens to leave out",
        ),
        (evaluate, ["--positions", "both"], "positions: BLIP for question answering has no query tokens to leave out"),
        (bench, ["--ratios", "0.5"], "which has no query tokens to leave out; leave --ratios out"),
        (explain, ["--image", "a.png", "--prompt", "x"], "votes for no query tokens"),
    ],
)
def test_what_needs_votes_is_refused(vqa_bundle: Path, app: Any, arguments: list[str], words: str) -> None:
    result = RUNNER.invoke(app, [str(vqa_bundle), *arguments])
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("error:") == 1


def test_times_are_of_the_stages_that_there_are(vqa_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    arguments = ["--batch", "2", "--iterations", "2", "--warmup", "0", "--threads", "1", "--json"]
    result = RUNNER.invoke(bench, [str(vqa_bundle), *arguments])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    (found,) = report.results
    assert found.ratio == 0 and set(found.roofline) == {"vision", "prefill", "decode"}
    for i, total in enumerate(found.samples_ms["total"]):
        parts = sum(found.samples_ms[stage][i] for stage in ("preprocess", "vision", "prefill", "host"))
        assert parts + 9 * found.samples_ms["decode"][i] == pytest.approx(total, abs=0.01)
    assert "qformer" not in found.samples_ms
    assert any("this bundle has no vote" in note for note in report.notes)


def test_both_text_graphs_are_quantised(vqa_bundle: Path, tmp_path: Path) -> None:
    target = tmp_path / "int8"
    arguments = ["--language", "int8", "--for", "cpu", "--samples", "16", "--questions", "24", "--no-sensitivity"]
    result = RUNNER.invoke(
        calibrate, ["precision", str(vqa_bundle), "-o", str(target), *arguments, "--max-accuracy-drop", "0.9"]
    )
    assert result.exit_code == 0, result.output
    graphs = open_bundle(target).manifest.graphs
    assert [name for name, spec in graphs.items() if spec.quantization] == ["question_encoder", "answer_decoder"]
    assert graphs["question_encoder"].quantization.layers == 3 * 10 + 2 * 3  # and the decoder's keys and values
    refused = ["precision", str(vqa_bundle), "-o", str(tmp_path / "no"), "--for", "cpu", "--language", "int8"]
    given = RUNNER.invoke(calibrate, [*refused, "--qformer", "int8"])
    assert given.exit_code == 2 and "--qformer: this bundle's graphs are" in given.stderr


def test_the_decoder_alone_becomes_int4(vqa_bundle: Path, tmp_path: Path) -> None:
    few = ["--samples", "16", "--questions", "12", "--no-sensitivity", "--max-accuracy-drop", "0.9", "--for", "cpu"]
    result = RUNNER.invoke(
        calibrate, ["precision", str(vqa_bundle), "-o", str(tmp_path / "int4"), "--decode", "int4", *few]
    )
    assert result.exit_code == 0, result.output
    bundle = open_bundle(tmp_path / "int4")
    assert [name for name, spec in bundle.manifest.graphs.items() if spec.quantization] == ["answer_decoder"]
    scene = scenes.examples(1, 3)
    (answer,) = Pipeline(bundle, open_provider("cpu")).generate([next(iter(scene)).image], ["what is red?"])
    assert answer.token_ids
