"""Bundles calibrated for TensorRT, built by TensorRT-RTX without a GPU; and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from typer.testing import CliRunner

from catp.calibration.precision.graphs.graph import FloatGraph
from catp.calibration.precision.recipe import make_recipe
from catp.export.commands.build import app
from catp.export.engines.targets import check_types
from catp.runtime import UsageError
from catp.runtime.bundle.chains import GRAPHS
from catp.runtime.bundle.engine_sets import open_set, set_folders
from catp.runtime.bundle.folder import open_bundle

pytestmark = pytest.mark.heavy

RUNNER = CliRunner()
FEW = ("--questions", "10", "--no-sensitivity", "--for", "tensorrt")
CASES = {
    "int8": ("demo_bundle", ("--to", "int8", *FEW)),
    "fp8": ("half_bundle", ("--to", "fp8", *FEW)),
    "int4": ("demo_bundle", ("--to", "int4", "--block-size", "64", *FEW)),
}
OPERATORS = {"int8": ("QuantizeLinear", "DequantizeLinear"), "fp8": ("QuantizeLinear", "DequantizeLinear")}


@pytest.fixture
def bundle(request: pytest.FixtureRequest, calibrated: Callable, tmp_path: Path) -> Callable[[str], Path]:
    def get(format: str) -> Path:
        source, arguments = CASES[format]
        folder = calibrated(f"tensorrt-{format}", request.getfixturevalue(source), *arguments)
        return Path(shutil.copytree(folder / "bundle", tmp_path / format))

    return get


def build(folder: Path, capability: str, *arguments: str) -> tuple[int, str]:
    pytest.importorskip("tensorrt_rtx")
    target = ["--target", "tensorrt-rtx", "--compute-capability", capability]
    result = RUNNER.invoke(app, [str(folder), *target, *arguments])
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.stderr.split())


@pytest.mark.parametrize("format", CASES)
def test_it_builds(format: str, bundle: Callable[[str], Path]) -> None:
    folder = bundle(format)
    code, printed = build(folder, "8.9")
    assert code == 0, printed
    opened = open_bundle(folder)
    engines = open_set(opened, set_folders(opened)[0])
    for name in GRAPHS:
        assert engines.plan(name).read_bytes()[:4] == b"vtrt"
        quantization = opened.manifest.graphs[name].quantization
        assert (quantization is None) == (format == "int4" and name != "language_model")
        # The network that TensorRT parsed: it may not have dropped what was quantised.
        layers = engines.plans[name].layers
        nodes = [node.op_type for node in onnx.load(folder / f"{name}.onnx", load_external_data=False).graph.node]
        assert layers.get("QUANTIZE", 0) == nodes.count("QuantizeLinear")
        assert layers.get("DEQUANTIZE", 0) == nodes.count("DequantizeLinear")
        if quantization is not None:
            weights = 1 if format == "int4" else 2  # of the activations, too
            assert nodes.count("DequantizeLinear") >= quantization.layers
            assert nodes.count("DequantizeLinear") - nodes.count("QuantizeLinear") == quantization.layers
            assert weights == 1 or nodes.count("QuantizeLinear") > 0


def test_fp8_needs_ada_or_newer(bundle: Callable[[str], Path]) -> None:
    code, printed = build(bundle("fp8"), "8.6")
    assert code == 2 and "FP8, which compute capability 8.6 does not have; build for 8.9 or later" in printed


def test_int4_needs_ampere_or_newer(bundle: Callable[[str], Path]) -> None:
    folder = bundle("int4")
    code, printed = build(folder, "7.5")
    assert code == 2 and "which compute capability 7.5 does not have; build for 8.0 or later" in printed
    model = onnx.load(folder / "language_model.onnx", load_external_data=False)
    with pytest.raises(UsageError, match=r"language_model: it computes in INT4, which compute capability 7\.5"):
        check_types("language_model", model, ["7.5"])


def test_a_bundle_for_a_cpu_is_refused(demo_bundle: Path, calibrated: Callable, tmp_path: Path) -> None:
    arguments = ("--to", "int8", "--language", "int4", "--for", "cpu", "--questions", "50")
    folder = Path(shutil.copytree(calibrated("cpu", demo_bundle, *arguments) / "bundle", tmp_path / "bundle"))
    code, printed = build(folder, "8.9")
    assert code == 2 and "vision_encoder: it is int8 (fp32), for cpu" in printed and "--for tensorrt" in printed
    assert not (folder / "engines").exists()


def test_what_tensorrt_wants_is_in_the_graphs(bundle: Callable[[str], Path]) -> None:
    """int8 around 0 alone, whole blocks of int4, and nothing from ONNX Runtime's own operators."""
    kinds = onnx.TensorProto
    for format, kind in (("int8", kinds.INT8), ("fp8", kinds.FLOAT8E4M3FN), ("int4", kinds.INT4)):
        folder = bundle(format)
        manifest = json.loads((folder / "catp.json").read_text())
        for name in GRAPHS:
            model = onnx.load(folder / f"{name}.onnx")
            assert {node.domain for node in model.graph.node} == {""}
            tensors = {tensor.name: tensor for tensor in model.graph.initializer}
            stored = {t.data_type for t in tensors.values() if len(t.dims) == 2}
            found = manifest["graphs"][name]["quantization"]
            assert (kind in stored) == (found is not None)
            zeros = [
                tensors[node.input[2]] for node in model.graph.node
                if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2
            ]  # fmt: skip
            assert {t.data_type for t in zeros} <= {kind}
            assert not [t.name for t in zeros if onnx.numpy_helper.to_array(t).astype("float32").any()]


def test_layers_without_whole_blocks_stay(odd_bundle: Path) -> None:
    graph = FloatGraph("language_model", odd_bundle / "language_model.onnx")
    for block, depths in ((16, {48}), (32, set())):
        recipe = make_recipe("int4", "tensorrt", block_size=block)
        assert {layer.depth for layer in graph.layers if recipe.takes(layer)} == depths
    # Rows are read from tables, and TensorRT keeps those as they are.
    assert {layer.depth for layer in graph.layers if not layer.is_table} == {40, 48, 72}
    assert any(layer.is_table for layer in graph.layers)
