"""Calibrated bundles of fp16 ones: what exceeds fp16 is refused where bundles are compared, and named by its layer."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.calibration.data.metrics import Metric
from catp.calibration.precision.comparison import ask
from catp.calibration.precision.formats.base import Range
from catp.calibration.precision.graphs.graph import FloatGraph, serialized
from catp.calibration.precision.recipe import make_recipe
from catp.export import exporter
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import CHECKPOINT
from catp.export.verification.emulation import emulate
from catp.runtime.bundle.folder import file_spec, open_bundle, write_manifest
from catp.runtime.errors import ParityError


@pytest.mark.heavy  # one more export
def test_an_fp16_bundle_from_before_that_overflows_is_not_calibrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_checkpoint(str(CHECKPOINT)).model
    with torch.no_grad():
        layer = model.language_model.model.decoder.layers[0]
        layer.fc1.weight *= 4e4
        layer.fc1.bias *= 4e4
        layer.fc2.weight /= 4e4
    shutil.copytree(CHECKPOINT, tmp_path / "beyond")
    model.save_pretrained(tmp_path / "beyond")
    monkeypatch.setattr(exporter, "check_parity", lambda bundle, expected: [])
    exporter.export_bundle(str(tmp_path / "beyond"), tmp_path / "bundle", precision="fp16")
    arguments = ["--vision", "int8", "--for", "tensorrt", "--samples", "16", "--questions", "10", "--no-sensitivity"]
    result = CliRunner().invoke(
        app, ["precision", str(tmp_path / "bundle"), "-o", str(tmp_path / "calibrated"), *arguments]
    )
    assert result.exit_code == 1 and "Traceback" not in result.output
    said = " ".join(result.stderr.split())
    assert "language_model: decoder.decoder.layers.0.fc1: the result of Gemm " in said
    assert "exceeds 65504, the largest number in fp16; nothing was published" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beyond", "bundle"]


def test_a_quantised_layer_that_takes_it_beyond(
    half_bundle: Path, calibrated: Callable, questions: Callable, tmp_path: Path
) -> None:
    arguments = ("--to", "fp8", "--for", "tensorrt", "--questions", "10", "--no-sensitivity")
    folder = Path(shutil.copytree(calibrated("tensorrt-fp8", half_bundle, *arguments) / "bundle", tmp_path / "bundle"))
    asked = questions(2)
    metric: Metric = "exact match"
    ask(folder, asked, metric, 0, 2, lambda more: None)  # as it was
    path = folder / "language_model.onnx"
    model = onnx.load(path, load_external_data=False)
    product = next(node for node in model.graph.node if node.name.endswith(".product") and node.op_type == "MatMul")
    scale = next(
        tensor for tensor in model.graph.initializer
        if tensor.name == product.input[1].replace("_restored", "_scale")
    )  # fmt: skip
    scale.CopyFrom(numpy_helper.from_array(np.full_like(numpy_helper.to_array(scale), 100), scale.name))
    onnx.save(model, path)
    manifest = open_bundle(folder, verify=False).manifest
    graphs = dict(manifest.graphs)
    graphs["language_model"] = graphs["language_model"].model_copy(update={"file": file_spec(folder, path)})
    write_manifest(folder, manifest.model_copy(update={"graphs": graphs}))
    with pytest.raises(ParityError, match=r"^language_model: decoder\.decoder\.layers\.0\.\S+: the result of MatMul"):
        ask(folder, asked, metric, 0, 2, lambda more: None)


def test_what_stands_for_a_layer_is_named_like_it(half_bundle: Path) -> None:
    graph = FloatGraph("language_model", half_bundle / "language_model.onnx")
    layer = next(layer for layer in graph.layers if layer.name.endswith("layers.1.self_attn.out_proj"))
    for recipe in (make_recipe("fp8", "tensorrt"), make_recipe("int8", "tensorrt")):
        model = graph.exchanged({layer.name: recipe.fragment(layer, {layer.input: Range(-3, 3)})})
        watched = {one.layer for one in emulate(onnx.load_from_string(serialized(model))) if layer.node in one.operator}
        assert watched == {layer.name}
