"""What ONNX Runtime makes of calibrated graphs: an integer kernel for every layer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest

from catp.calibration.precision.formats.base import Range
from catp.calibration.precision.graph import serialized
from catp.calibration.precision.recipe import make_recipe
from catp.runtime.bundle import open_bundle
from catp.runtime.engines.onnx_runtime import OrtProvider
from catp.runtime.manifest import GRAPHS

INTEGER = {
    "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QGemm"
}  # fmt: skip


class Dumping(OrtProvider):
    """The product's own sessions, which write down what they optimised a graph to."""

    def __init__(self, path: Path) -> None:
        super().__init__("cpu")
        self.path = path

    def _options(self, purpose: Any) -> Any:
        options = super()._options(purpose)
        options.optimized_model_filepath = str(self.path)
        return options

    def read(self) -> onnx.GraphProto:
        return onnx.load(self.path, load_external_data=False).graph


@pytest.fixture
def dumping(tmp_path: Path) -> Dumping:
    return Dumping(tmp_path / "optimized.onnx")


def kernels(graph: onnx.GraphProto, weights: list[str]) -> Mapping[str, list[str]]:
    """By quantised weight, the operators that read it."""
    return {weight: [node.op_type for node in graph.node if weight in node.input] for weight in weights}


def assert_integer(graph: onnx.GraphProto, nodes: list[str]) -> None:
    for weight, readers in kernels(graph, [f"{node}.weight_quantized" for node in nodes]).items():
        assert len(readers) == 1 and readers[0] in INTEGER, (weight, readers)
    assert not [node.name for node in graph.node if node.op_type == "DequantizeLinear"]


def test_a_calibrated_bundle_runs_on_integer_kernels(
    demo_bundle: Path, calibrated: Callable, float_graphs: Callable, dumping: Dumping
) -> None:
    """INT8 vision encoder and Q-Former, INT4 language model."""
    bundle = open_bundle(calibrated("cpu", demo_bundle, *CPU) / "bundle")
    for name, graph in float_graphs(demo_bundle).items():
        dumping.engine(bundle, name)
        optimized, quantization = dumping.read(), bundle.manifest.graphs[name].quantization
        assert quantization is not None
        nodes = [layer.node for layer in graph.layers if not layer.is_table and layer.name not in quantization.kept]
        assert len(nodes) == quantization.layers
        if name == "language_model":
            found = [node for node in optimized.node if node.op_type == "MatMulNBits"]
            assert sorted(node.input[1] for node in found) == sorted(f"{node}.weight_Q4" for node in nodes)
            for node in found:
                assert {a.name: a.i for a in node.attribute}["accuracy_level"] == 4
        else:
            assert_integer(optimized, nodes)
            operators = [node.op_type for node in optimized.node]
            assert sum(operator in INTEGER for operator in operators) == quantization.layers
            if name == "vision_encoder":  # each layer reads a tensor of its own there, so quantising is fused as well
                assert operators.count("DynamicQuantizeMatMul") == 16


CPU = ("--to", "int8", "--language", "int4", "--for", "cpu", "--questions", "50")


@pytest.mark.parametrize(
    ("activations", "bundle", "graph"),
    [
        pytest.param(
            activations, bundle, graph,
        )
        for activations in ("dynamic", "static")
        for bundle in ("demo_bundle", "odd_bundle")
        for graph in GRAPHS
    ],
)  # fmt: skip
def test_int8_has_an_integer_kernel_for_every_layer(
    activations: str,
    bundle: str,
    graph: str,
    float_graphs: Callable,
    dumping: Dumping,
    request: pytest.FixtureRequest,
) -> None:
    found = float_graphs(request.getfixturevalue(bundle))[graph]
    recipe = make_recipe("int8", "cpu", activations)
    layers = [layer for layer in found.layers if not layer.is_table]
    ranges = {layer.input: Range(-2.0, 3.0) for layer in layers}
    model = found.exchanged({layer.name: recipe.fragment(layer, ranges) for layer in layers})
    dumping.engine_in_memory(serialized(model), found.folder, "cpu")
    assert_integer(dumping.read(), [layer.node for layer in layers])
