"""What ONNX Runtime makes of calibrated graphs: an integer kernel for every layer."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from catp.calibration.precision.formats.base import Range
from catp.calibration.precision.graphs.graph import serialized
from catp.calibration.precision.recipe import make_recipe
from catp.runtime.bundle.chains import GRAPHS
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.providers.onnx_runtime import OrtProvider

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
        layers = [layer for layer in graph.layers if not layer.is_table and layer.name not in quantization.kept]
        assert len(layers) == quantization.layers
        weights = sum(layer.weight().size for layer in layers)
        if name == "language_model":
            found = [{a.name: a.i for a in n.attribute} for n in optimized.node if n.op_type == "MatMulNBits"]
            assert sum(attributes["N"] * attributes["K"] for attributes in found) == weights
            assert {attributes["accuracy_level"] for attributes in found} == {4}
        else:
            sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in optimized.initializer}
            # Votes are counted by products with ones, which are no layers.
            found = [n for n in optimized.node if n.op_type in INTEGER and not n.input[1].startswith("ones.")]
            assert sum(sizes[node.input[1]] for node in found) == weights
            assert not [node.name for node in optimized.node if node.op_type == "DequantizeLinear"]
            if name == "vision_encoder":  # queries, keys and values read one tensor, the others each their own
                kinds = [node.op_type for node in found]
                assert [kinds.count(kind) for kind in ("DynamicQuantizeMatMul", "MatMulIntegerToFloat")] == [12, 12]


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
