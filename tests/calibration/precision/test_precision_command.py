"""catp-calibrate precision as a user calls it: what it refuses, and what it prints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.calibration.precision.report import PrecisionReport

RUNNER = CliRunner()
INT8 = ["--to", "int8", "--for", "cpu"]
CPU = ("--to", "int8", "--language", "int4", "--for", "cpu", "--questions", "50")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--for", "cpu"], "nothing to quantise: give --to, or one of --vision, --qformer, --language"),
        ([*INT8, "--vision", "none", "--qformer", "none", "--language", "none"], "nothing to quantise: give --to"),
        pytest.param(
            ["--to", "int8"], "Missing option '--for'",
        ),
        (["--to", "fp8", "--for", "cpu"], "fp8 for cpu: ONNX Runtime has no FP8 kernels for CPUs; give int8"),
        (["--to", "int8", "--for", "tensorrt", "--activations", "dynamic"], "dynamic activations for tensorrt"),
        (["--to", "int4", "--for", "cpu", "--block-size", "48"], "block size 48: "),
        (["--to", "int2", "--for", "cpu"], "'int2' is not one of"),
        (["--to", "int8", "--for", "gpu"], "'gpu' is not one of 'cpu', 'tensorrt'"),
        ([*INT8, "--method", "percentile", "--percentile", "50"], "percentile 50.0: in per cent, 50 < percentile"),
        ([*INT8, "--percentile", "100.5"], "percentile 100.5"),
        ([*INT8, "--exclude", "*.mlp.fc2", "--exclude", "decoder.fc9"], "exclude 'decoder.fc9': no layer is called so"),
        (["--vision", "int8", "--for", "cpu", "--exclude", "*"], "vision_encoder: it has no layers to quantise to in"),
        (
            ["--to", "int4", "--block-size", "256", "--for", "tensorrt", "--exclude", "*.fc2"],
            "language_model: it has no layers to quantise to int4",
        ),
        ([*INT8, "--samples", "15"], "15 samples are too few to choose ranges by; give at least 16"),
        ([*INT8, "--samples", "0"], "--samples"),
        ([*INT8, "--max-accuracy-drop", "1"], "max accuracy drop 1.0"),
        ([*INT8, "--min-kept-overlap", "1.5"], "min kept overlap 1.5"),
        ([*INT8, "--data", "nowhere"], "data 'nowhere': no such data set; accepted: demo"),
        ([*INT8, "--data", "nowhere.jsonl"], "data nowhere.jsonl: can't be opened"),
        ([*INT8, "--report", "/nowhere/report.json"], "there is no folder"),
    ],
)  # fmt: skip
def test_mistakes_exit_2_with_one_line(demo_bundle: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    assert_refused(demo_bundle, tmp_path / "out", arguments, message)
    assert not list(tmp_path.iterdir())


def assert_refused(bundle: Path, output: Path, arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["precision", str(bundle), "-o", str(output), *arguments])
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output
    assert len(result.stderr.splitlines()) == 1 and not result.stdout and result.stderr.startswith("error: ")


def test_bundles_that_can_not_be_calibrated(
    demo_bundle: Path, half_bundle: Path, calibrated: Callable, tmp_path: Path
) -> None:
    done = calibrated("cpu", demo_bundle, *CPU) / "bundle"
    linked = Path(shutil.copytree(demo_bundle, tmp_path / "linked"))
    (tmp_path / "another").hardlink_to(linked / "vision_encoder.onnx_data")
    output = tmp_path / "out"
    for bundle, arguments, message in (
        (done, ["--to", "int8", "--for", "tensorrt"], "vision_encoder: it is quantised already"),
        (half_bundle, INT8, "vision_encoder: it is in fp16, and ONNX Runtime's integer kernels for CPUs read float32"),
        (linked, INT8, "vision_encoder.onnx_data: it has a second name"),
        (tmp_path / "nothing", INT8, "no such folder"),
        (tmp_path, INT8, "it has no catp.json"),
    ):
        assert_refused(bundle, output, arguments, message)
        assert not output.exists()


def test_outputs_that_are_taken(demo_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    before = {path.name: path.stat().st_mtime_ns for path in copy.iterdir()}
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    (tmp_path / "file").touch()
    for output, arguments, message in (
        (copy, INT8, "the folder is not empty; give another one, or --overwrite"),
        (copy, [*INT8, "--overwrite"], "it is the bundle that is read; name another folder"),
        (copy / ".." / "bundle", [*INT8, "--overwrite"], "it is the bundle that is read"),
        (other, INT8, "the folder is not empty"),
        (other, [*INT8, "--overwrite"], "it holds no catp.json, so catp-export did not write it"),
        (tmp_path / "file", INT8, "it is a file"),
    ):
        assert_refused(copy, output, arguments, message)
    assert {path.name: path.stat().st_mtime_ns for path in copy.iterdir()} == before
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]


def test_overwrite_replaces_a_bundle_and_json_is_one_line(demo_bundle: Path, tmp_path: Path) -> None:
    output = Path(shutil.copytree(demo_bundle, tmp_path / "out"))
    report = tmp_path / "report.json"
    few = ["--samples", "16", "--questions", "5", "--min-kept-overlap", "0.8", "--no-sensitivity"]
    arguments = ["--language", "int8", "--for", "cpu", "--overwrite", *few, "--report", str(report), "--json"]
    result = RUNNER.invoke(app, ["precision", str(demo_bundle), "-o", str(output), *arguments])
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    content = json.loads(result.stdout)
    assert content == json.loads(report.read_text()) and content["schema_version"] == 1
    found = PrecisionReport.model_validate(content)
    assert found.confirmed and found.calibration is not None
    manifest = json.loads((output / "catp.json").read_text())
    assert manifest["calibration"] == content["calibration"]
    assert manifest["graphs"]["language_model"]["quantization"]["format"] == "int8"
    printed = " ".join(result.stderr.split())
    assert f"Next: catp-run {output}" in printed and "Quantised, compared on 5 questions of demo" in printed
    assert {path.name for path in tmp_path.iterdir()} == {"out", "report.json"}


@pytest.mark.parametrize("arguments", [INT8, ["--to", "int8", "--for", "tensorrt"]], ids=["dynamic", "static"])
def test_images_that_can_not_be_read_are_no_traceback(arguments: list[str], demo_bundle: Path, tmp_path: Path) -> None:
    data = tmp_path / "mine.jsonl"
    lines = [{"image": f"{i}.png", "question": "what is it?", "answer": "a cup"} for i in range(90)]
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = ["--samples", "16", "--questions", "5", "--data", str(data)]
    output = tmp_path / "out"
    result = RUNNER.invoke(app, ["precision", str(demo_bundle), "-o", str(output), *arguments, *few])
    assert not output.exists()
    assert result.exit_code in (1, 2) and result.stderr.startswith("error: ")


def test_help_has_what_messages_name() -> None:
    result = RUNNER.invoke(app, ["precision", "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for option in ("--for", "--vision", "--qformer", "--language", "--exclude", "--max-accuracy-drop", "--samples"):
        assert option in result.stdout
