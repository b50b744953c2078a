"""Commands on a bundle that writes captions: texts with what follows them, and no questions."""

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
from catp.export.demo import scenes
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle

RUNNER = CliRunner()
BEGINNING = "what is"


@pytest.fixture(scope="module")
def data(caption_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with the captions that the bundle itself gives them, so that all of them are right."""
    folder = tmp_path_factory.mktemp("captions")
    pictures = [example.image for example in scenes.examples(48, seed=3)]
    captions = Pipeline.load(caption_bundle).generate(pictures, [BEGINNING] * len(pictures))
    lines = []
    for number, (picture, caption) in enumerate(zip(pictures, captions)):
        picture.save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": BEGINNING, "answers": [caption.answer]})
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "captions.jsonl"


@pytest.mark.parametrize(
    ("app", "arguments", "words"),
    [
        (evaluate, ["{bundle}"], "catp-eval: bundle {bundle} is BLIP for captions, which answers no questions"),
        (evaluate, ["{bundle}", "--data", "easy-vqa"], "which answers no questions; give --data FILE.jsonl"),
        (evaluate, ["{bundle}", "--data", "{data}", "--ratios", "0.5"], "has no query tokens to leave out"),
        (
            calibrate,
            ["precision", "{bundle}", "--to", "int8", "--for", "cpu", "-o", "{data}-int8"],
            "catp-calibrate precision: bundle {bundle} is BLIP for captions, which answers no questions",
        ),
        (calibrate, ["ratio", "{bundle}"], "votes for no query tokens"),
        (explain, ["{bundle}", "--image", "a.png", "--prompt", "x"], "votes for no query tokens"),
    ],
)
def test_what_captions_are_no_answer_to_is_refused(
    caption_bundle: Path, data: Path, app: Any, arguments: list[str], words: str
) -> None:
    given = {"bundle": str(caption_bundle), "data": str(data)}
    result = RUNNER.invoke(app, [argument.format(**given) for argument in arguments])
    assert result.exit_code == 2 and words.format(**given) in result.stderr and result.stderr.count("error:") == 1


def test_both_text_graphs_are_quantised_by_captions_of_ones_own(
    caption_bundle: Path, data: Path, tmp_path: Path
) -> None:
    target = tmp_path / "int8"
    arguments = ["--language", "int8", "--for", "cpu", "--samples", "16", "--questions", "24", "--no-sensitivity"]
    result = RUNNER.invoke(
        calibrate,
        [
            *("precision", str(caption_bundle), "-o", str(target), "--data", str(data)),
            *(*arguments, "--max-accuracy-drop", "0.9"),
        ],
    )
    assert result.exit_code == 0, result.output
    manifest = open_bundle(target).manifest
    quantised = [name for name, spec in manifest.graphs.items() if spec.quantization]
    assert quantised == ["image_keys", "caption_decoder"]
    assert manifest.graphs["image_keys"].quantization.layers == 3 * 2  # type: ignore[union-attr]
    assert manifest.calibration is not None
    (change,) = manifest.calibration.accuracy
    assert change.before == 1 and change.after > 0.2
    image = next(iter(scenes.examples(1, seed=3))).image
    assert Pipeline.load(target).generate([image], [BEGINNING])[0].token_ids


def test_times_are_of_the_stages_that_there_are(caption_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    arguments = ["--batch", "2", "--iterations", "2", "--warmup", "0", "--threads", "1", "--json"]
    result = RUNNER.invoke(bench, [str(caption_bundle), *arguments])
    assert result.exit_code == 0, result.output
    (found,) = BenchmarkReport.model_validate_json(result.stdout).results
    assert found.ratio == 0 and set(found.roofline) == {"vision", "prefill", "decode"}
    assert "qformer" not in found.samples_ms
