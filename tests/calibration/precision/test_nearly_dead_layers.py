"""Bundles with layers that hardly do anything, and calibrations in which a layer computes what is no number."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.calibration.precision.recipe import Recipe
from catp.calibration.precision.report import PrecisionReport
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.files import sha256

RUNNER = CliRunner()
LAYER = "vision_model.encoder.layers.2.mlp"
FEW = ("--samples", "16", "--questions", "12", "--max-accuracy-drop", "0.2", "--min-kept-overlap", "0.9")

Scale = Callable[[Path, Path, float, float], Path]


@pytest.fixture
def scaled(tmp_path: Path) -> Scale:
    """`scaled(bundle, folder, first, second)`: an MLP's weights and the first's bias, times these."""

    def make(source: Path, folder: Path, first: float, second: float) -> Path:
        folder.mkdir()
        for path in source.iterdir():
            if path.is_file() and not path.name.startswith("vision_encoder"):
                (folder / path.name).write_bytes(path.read_bytes())
        model = onnx.load(source / "vision_encoder.onnx")
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        weights = {
            module: node.input[1]
            for node in model.graph.node
            for module in ("fc1", "fc2")
            if node.op_type == "MatMul" and any(f"'{LAYER}.{module}'" in p.value for p in node.metadata_props)
        }
        for name, factor in ((weights["fc1"], first), (f"{LAYER}.fc1.bias", first), (weights["fc2"], second)):
            array = numpy_helper.to_array(tensors[name])
            edited = (array.astype(np.float64) * factor).astype(array.dtype)
            assert np.isfinite(edited).all()
            tensors[name].CopyFrom(numpy_helper.from_array(edited, name))
        path, data = folder / "vision_encoder.onnx", "vision_encoder.onnx_data"
        onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=1024)
        manifest = json.loads((folder / "catp.json").read_text())
        spec = manifest["graphs"]["vision_encoder"]
        for entry in (spec["file"], spec["external_data"]):
            entry |= {"size": (folder / entry["path"]).stat().st_size, "sha256": sha256(folder / entry["path"])}
        (folder / "catp.json").write_text(json.dumps(manifest))
        return folder

    return make


@pytest.mark.parametrize("arguments", [("fp8", "tensorrt"), ("int8", "tensorrt")])
def test_a_nearly_dead_layer_of_half_precision_is_quantised_like_the_others(
    arguments: tuple[str, str], half_bundle: Path, scaled: Scale, tmp_path: Path
) -> None:
    """fc2 reads 1e-6, and its weights make up for it; scales would be 1e-9, and are 0 in float16."""
    source = scaled(half_bundle, tmp_path / "source", 3e-6, 3e4)
    format, purpose = arguments
    report, output = tmp_path / "report.json", tmp_path / "out"
    called = ["precision", str(source), "-o", str(output), "--vision", format, "--for", purpose, *FEW]
    result = RUNNER.invoke(app, [*called, "--report", str(report)])
    assert result.exit_code == 0, result.output
    found = PrecisionReport.model_validate_json(report.read_text())
    assert [trial.kept for trial in found.trials] == [()] and found.confirmed
    errors = {error.layer: error.error for error in found.errors}
    assert len(errors) == 16 and all(error < 0.05 for error in errors.values())
    assert 0 < errors[f"{LAYER}.fc2"] < errors[f"{LAYER}.fc1"] * 3 + 0.02
    scales = [
        numpy_helper.to_array(tensor)
        for tensor in onnx.load(output / "vision_encoder.onnx").graph.initializer
        if "scale" in tensor.name
    ]
    assert len(scales) >= 28 and all((scale > 0).all() and np.isfinite(scale).all() for scale in scales)


def test_a_layer_of_zeros_is_named_as_exclude_takes_it(demo_bundle: Path, scaled: Scale, tmp_path: Path) -> None:
    """Dynamic scales take it as it is; a static one can't be chosen for what is 0 everywhere."""
    source = scaled(demo_bundle, tmp_path / "source", 0, 1)
    output = tmp_path / "out"
    called = ["precision", str(source), "-o", str(output), "--vision", "int8", "--for", "cpu", *FEW, "--no-sensitivity"]
    refused = RUNNER.invoke(app, [*called, "--activations", "static"])
    advice = f"--exclude {LAYER}.fc2"
    assert refused.exit_code == 1 and "it was 0 everywhere" in refused.stderr and not output.exists()
    assert refused.stderr.rstrip().endswith(advice) and len(refused.stderr.splitlines()) == 1
    done = RUNNER.invoke(app, [*called, "--activations", "static", *advice.split()])
    assert done.exit_code == 0, done.output
    quantization = open_bundle(output).manifest.graphs["vision_encoder"].quantization
    assert quantization is not None and quantization.kept == (f"{LAYER}.fc2",)
    done = RUNNER.invoke(app, [*called, "--overwrite"])
    assert done.exit_code == 0, done.output
    quantization = open_bundle(output).manifest.graphs["vision_encoder"].quantization
    assert quantization is not None and quantization.kept == ()


def test_the_layer_that_computes_what_is_no_number_is_the_one_that_stays(
    demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Recipe.fragment

    def broken(self: Recipe, layer, ranges):  # type: ignore[no-untyped-def]
        fragment = whole(self, layer, ranges)
        if layer.name == f"{LAYER}.fc2":
            (scale,) = (tensor for tensor in fragment.initializer if tensor.name.endswith("weight_scale"))
            array = numpy_helper.to_array(scale) * np.float32(np.nan)
            scale.CopyFrom(numpy_helper.from_array(array, scale.name))
        return fragment

    monkeypatch.setattr(Recipe, "fragment", broken)
    called = ["precision", str(demo_bundle), "-o", str(tmp_path / "out"), "--vision", "int8", "--for", "cpu", *FEW]
    result = RUNNER.invoke(app, [*called, "--json"])
    assert result.exit_code == 0, result.output
    found = PrecisionReport.model_validate_json(result.stdout)
    assert found.errors[0].key == ("vision_encoder", f"{LAYER}.fc2") and found.errors[0].error == np.inf
    assert [(trial.kept, trial.fits) for trial in found.trials] == [
        ((), False),
        ((f"vision_encoder: {LAYER}.fc2",), True),
    ]
    assert found.trials[0].kept_overlap == 0  # scores that are no numbers keep nothing
    assert "no number" in result.stderr and json.loads(result.stdout)["errors"][0]["error"] == "Infinity"


def test_one_question_is_refused_and_few_are_doubted(demo_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    called = ["precision", str(demo_bundle), "-o", str(output), "--vision", "int8", "--for", "cpu", "--samples", "16"]
    result = RUNNER.invoke(app, [*called, "--questions", "1"])
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and not output.exists()
    assert "1 question about 1 picture, too few" in result.stderr and "at least 4 pictures" in result.stderr
    result = RUNNER.invoke(app, [*called, "--questions", "6", "--no-sensitivity"])
    printed = " ".join(result.stderr.split())
    assert result.exit_code == 0 and "6 questions about 6 pictures leave open whether it costs up to" in printed
    called += ["--questions", "6", "--no-sensitivity", "--overwrite"]
    wide = RUNNER.invoke(app, [*called, "--max-accuracy-drop", "0.5"])
    assert wide.exit_code == 0 and "leave open" not in wide.stderr
