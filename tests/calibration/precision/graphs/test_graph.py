"""Layers are exchanged or laid open, and everything else of the graph stays as it was."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from catp.calibration.precision.formats.base import Range
from catp.calibration.precision.graphs.graph import TAP, FloatGraph, serialized
from catp.calibration.precision.recipe import make_recipe
from catp.export.writing.external_data import save_model
from catp.runtime.bundle.chains import GRAPHS

BUNDLES = ("demo_bundle", "odd_bundle", "half_bundle")


def signature(model: onnx.ModelProto) -> list[tuple[str, onnx.TypeProto]]:
    return [(value.name, value.type) for value in (*model.graph.input, *model.graph.output)]


def assert_alike(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        if array.dtype.kind == "i":  # kept tokens, next token
            np.testing.assert_array_equal(found[name], array, name)
        else:
            tolerance = 2e-2 if array.dtype == np.float16 else 2e-5
            scale = max(float(np.abs(array).max()), 1e-6)
            np.testing.assert_allclose(found[name] / scale, array / scale, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("bundle", BUNDLES)
def test_float_fragments_change_nothing(
    bundle: str, graph: str, run: Callable, feeds: Callable, float_fragment: Callable, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(bundle)
    path = folder / f"{graph}.onnx"
    found, inputs = FloatGraph(graph, path), feeds(folder, graph)
    wanted = run(path, folder, inputs)
    original = onnx.load(path, load_external_data=False)

    untouched = onnx.load_from_string(serialized(found.exchanged({})))
    assert signature(untouched) == signature(original)
    assert [(n.op_type, n.input, n.output) for n in untouched.graph.node] == [
        (n.op_type, n.input, n.output) for n in original.graph.node
    ]
    assert_alike(run(untouched.SerializeToString(), folder, inputs), wanted)

    model = serialized(found.exchanged({layer.name: float_fragment(layer) for layer in found.layers}))
    exchanged = onnx.load_from_string(model)
    assert signature(exchanged) == signature(original)
    inserted = {f"{layer.node}.weight" for layer in found.layers}
    assert inserted <= {name for node in exchanged.graph.node for name in node.input}
    assert_alike(run(model, folder, inputs), wanted)


@pytest.mark.parametrize(
    ("format", "purpose", "activations", "operator"),
    [
        ("int8", "cpu", "dynamic", "DynamicQuantizeLinear"),
        ("int8", "cpu", "static", "QuantizeLinear"),
        ("int8", "tensorrt", "static", "QuantizeLinear"),
        ("fp8", "tensorrt", "static", "QuantizeLinear"),
    ],
)
def test_layers_that_read_one_tensor_quantise_it_once(
    format: str, purpose: str, activations: str, operator: str, demo_bundle: Path, float_graphs: Callable
) -> None:
    graph = float_graphs(demo_bundle)["qformer_voting"]
    recipe = make_recipe(format, purpose, activations)  # type: ignore[arg-type]
    tensors = {layer.input for layer in graph.layers}
    assert len(tensors) < len(graph.layers)  # queries, keys and values of one attention
    ranges = {tensor: Range(-1.5, 2.0) for tensor in tensors}
    model = graph.exchanged({layer.name: recipe.fragment(layer, ranges) for layer in graph.layers})
    assert Counter(node.op_type for node in model.graph)[operator] == len(tensors)


@pytest.mark.parametrize("with_tables", [True, False])
def test_weights_that_nothing_reads_are_dropped(
    with_tables: bool, demo_bundle: Path, tmp_path: Path, float_graphs: Callable
) -> None:
    graph = float_graphs(demo_bundle)["language_model"]
    recipe = make_recipe("int8", "cpu")
    layers = [layer for layer in graph.layers if with_tables or not layer.is_table]
    save_model(graph.exchanged({layer.name: recipe.fragment(layer, {}) for layer in layers}), tmp_path / "g.onnx")
    onnx.checker.check_model(tmp_path / "g.onnx", full_check=True)
    model = onnx.load(tmp_path / "g.onnx")
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    # The head is tied: where its matrix is also the table of tokens, it stays as long as that is read.
    floats = [t for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and min([*t.dims, 0][:2]) > 1]
    readers = [node.op_type for tensor in floats for node in model.graph.node if tensor.name in node.input]
    assert readers == ([] if with_tables else ["Gather", "Gather"])
    head = next(layer for layer in graph.layers if layer.name == "head")
    tables = [list(layer.weight().shape) for layer in graph.layers if layer.is_table]
    assert sorted(list(t.dims) for t in floats) == ([] if with_tables else sorted(tables))
    assert [head.weight().shape[1], head.depth] in tables


def test_an_excluded_layer_keeps_its_product(demo_bundle: Path, float_graphs: Callable) -> None:
    graph = float_graphs(demo_bundle)["vision_encoder"]
    recipe = make_recipe("int4", "cpu")
    kept = graph.layers[5]
    model = graph.exchanged({one.name: recipe.fragment(one, {}) for one in graph.layers if one is not kept})
    counts = Counter(node.op_type for node in model.graph)
    assert (counts["MatMulNBits"], counts["MatMul"]) == (15, 1)
    (product,) = (node for node in model.graph if node.op_type == "MatMul")
    assert product.name == kept.node and model.opset_imports["com.microsoft"] == 1


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("bundle", ["demo_bundle", "odd_bundle"])
def test_taps_show_what_layers_read(
    bundle: str, graph: str, run: Callable, feeds: Callable, request: pytest.FixtureRequest
) -> None:
    """By what the layers make of it: their outputs are laid open by onnx alone, and computed from the taps by numpy."""
    folder = request.getfixturevalue(bundle)
    path = folder / f"{graph}.onnx"
    found, inputs = FloatGraph(graph, path), feeds(folder, graph)
    layers = [layer for layer in found.layers if not layer.is_table]
    tapped = serialized(found.tapped(layers))
    names = [output.name for output in onnx.load_from_string(tapped).graph.output]
    taps = list(dict.fromkeys(f"{TAP}{layer.input}" for layer in layers))
    plain = onnx.load(path, load_external_data=False)
    assert names == [output.name for output in plain.graph.output] + taps

    opened = onnx.load(path)
    nodes = {node.name: node for node in opened.graph.node}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in opened.graph.initializer}
    outputs = {layer.name: nodes[layer.node].output[0] for layer in layers}
    listed = {output.name for output in opened.graph.output}
    for name in set(outputs.values()) - listed:
        opened.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    wanted = run(opened.SerializeToString(), folder, inputs)
    seen = run(tapped, folder, inputs)
    assert_alike(
        {name: seen[name] for name in names if not name.startswith(TAP)}, {n: wanted[n] for n in names if n in listed}
    )
    for layer in layers:
        y = seen[f"{TAP}{layer.input}"].astype(np.float64) @ layer.weight().astype(np.float64)
        bias = nodes[layer.node].input[2:]
        assert bool(bias) == (nodes[layer.node].op_type == "Gemm" and layer.name != "head")
        y = y + constants[bias[0]] if bias else y
        np.testing.assert_allclose(wanted[outputs[layer.name]], y, rtol=1e-4, atol=1e-4 * np.abs(y).max())
