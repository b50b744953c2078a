"""Layers are found by the modules that they came from, and only where they depend on what the graph is given."""

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from catp.calibration.precision.formats.base import single_layer
from catp.calibration.precision.graphs.graph import FloatGraph
from catp.calibration.precision.graphs.layers import Layer, exclude_options, matching
from catp.calibration.precision.recipe import make_recipe
from catp.export.writing.external_data import save_model
from catp.runtime import UsageError

Graphs = Callable[[Path], dict[str, FloatGraph]]
FLOAT = onnx.TensorProto.FLOAT


def constants(path: Path) -> dict[str, tuple[bool, bool, np.ndarray]]:
    """By name, nodes that read a constant matrix: whether as a table, whether they depend on an input; and the matrix.

    [K, N] of a product, [rows, width] of a table.
    """
    model = onnx.load(path)
    matrices = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if len(t.dims) == 2}
    dependent = {value.name for value in model.graph.input}
    found = {}
    for node in model.graph.node:
        depends = bool(dependent & set(node.input))
        if depends:
            dependent.update(node.output)
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type in ("MatMul", "Gemm") and node.input[1] in matrices and node.input[0] not in matrices:
            matrix = matrices[node.input[1]]
            found[node.name] = False, depends, matrix.T if attributes.get("transB") else matrix
        elif node.op_type == "Gather" and node.input[0] in matrices and not attributes.get("axis"):
            found[node.name] = True, depends, matrices[node.input[0]]
    return found


@pytest.mark.parametrize("bundle", ["demo_bundle", "odd_bundle"])
def test_every_constant_matrix_that_meets_an_input_is_a_layer(
    bundle: str, float_graphs: Graphs, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(bundle)
    left_out = {}
    for name, graph in float_graphs(folder).items():
        wanted = constants(folder / f"{name}.onnx")
        assert [layer.node for layer in graph.layers] == [node for node, (_, depends, _) in wanted.items() if depends]
        left_out[name] = sum(not depends for _, depends, _ in wanted.values())
        for layer in graph.layers:
            is_table, _, matrix = wanted[layer.node]
            np.testing.assert_array_equal(layer.weight(), matrix)
            assert (layer.is_table, layer.depth, layer.nbytes) == (is_table, len(matrix), matrix.nbytes)
        assert any(layer.is_table for layer in graph.layers) == (name == "language_model")
    # The queries of the first Q-Former layer have not met the image yet: that is computed when the graph is loaded.
    assert left_out["qformer_voting"] >= 4 and not left_out["vision_encoder"]


def test_layers_are_called_as_their_modules(demo_bundle: Path, float_graphs: Graphs) -> None:
    names = {name: [layer.name for layer in graph.layers] for name, graph in float_graphs(demo_bundle).items()}
    for found in names.values():
        assert len(set(found)) == len(found)
    parts = ("self_attn.qkv", "self_attn.projection", "mlp.fc1", "mlp.fc2")
    assert names["vision_encoder"] == [f"vision_model.encoder.layers.{i}.{part}" for i in range(4) for part in parts]
    first = "qformer.encoder.layer.0."
    assert [name.removeprefix(first) for name in names["qformer_voting"] if name.startswith(first)] == [
        "crossattention.attention.key", "crossattention.attention.value", "crossattention.output.dense",
        "intermediate_query.dense", "output_query.dense",
    ]  # fmt: skip
    assert names["qformer_voting"][-1] == "projection" and names["language_model"][-1] == "head"
    assert {name.rpartition(".")[2] for name in names["language_model"]} == {
        "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "head", "embedding", "embed_positions"
    }  # fmt: skip


def test_layers_of_one_name_are_told_apart_by_their_nodes(tmp_path: Path) -> None:
    """Without the exporter's notes a layer is called after its weight, which two of them may share."""
    weight = numpy_helper.from_array(np.eye(4, dtype=np.float32), "tied.weight")
    nodes = [
        helper.make_node("MatMul", ["x" if i == 0 else f"y{i - 1}", "tied.weight"], [f"y{i}"], f"n{i}") for i in (0, 1)
    ]
    x, y = (helper.make_tensor_value_info(name, FLOAT, ["rows", 4]) for name in ("x", "y1"))
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight]))
    onnx.save(model, tmp_path / "g.onnx")
    assert [layer.name for layer in FloatGraph("g", tmp_path / "g.onnx").layers] == ["tied:n0", "tied:n1"]


def test_a_graph_that_is_quantised_is_refused(demo_bundle: Path, float_graphs: Graphs, tmp_path: Path) -> None:
    graph = float_graphs(demo_bundle)["vision_encoder"]
    layer = graph.layers[3]
    for index, recipe in enumerate((make_recipe("int8", "cpu"), make_recipe("int4", "cpu"))):
        path = tmp_path / f"{index}.onnx"
        save_model(graph.exchanged({layer.name: recipe.fragment(layer, {})}), path)
        with pytest.raises(UsageError, match=r"vision_encoder: it is quantised already; give the floating-point"):
            FloatGraph("vision_encoder", path)


def test_a_graph_whose_tables_alone_are_quantised_is_refused(
    demo_bundle: Path, float_graphs: Graphs, tmp_path: Path
) -> None:
    graph = float_graphs(demo_bundle)["language_model"]
    table = next(layer for layer in graph.layers if layer.is_table)
    save_model(graph.exchanged({table.name: make_recipe("int8", "cpu").fragment(table, {})}), tmp_path / "g.onnx")
    with pytest.raises(UsageError, match="language_model: it is quantised already"):
        FloatGraph("language_model", tmp_path / "g.onnx")


def test_a_graph_without_layers_is_refused(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, FLOAT, [2, 2]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "x"], ["y"], "n")], "g", [x], [y])
    onnx.save(helper.make_model(graph), tmp_path / "g.onnx")
    with pytest.raises(UsageError, match="g: it has no product with a constant matrix"):
        FloatGraph("g", tmp_path / "g.onnx")


def test_weights_with_a_second_name_are_refused_by_name(demo_bundle: Path, tmp_path: Path) -> None:
    copies = [Path(tmp_path / name) for name in ("vision_encoder.onnx", "vision_encoder.onnx_data")]
    for copy in copies:
        copy.write_bytes((demo_bundle / copy.name).read_bytes())
    (tmp_path / "another").hardlink_to(copies[1])
    with pytest.raises(UsageError, match=r"vision_encoder\.onnx_data: it has a second name .* copy the bundle"):
        FloatGraph("vision_encoder", copies[0])


def test_patterns_are_those_of_file_names(demo_bundle: Path, float_graphs: Graphs) -> None:
    layers = float_graphs(demo_bundle)["vision_encoder"].layers

    def fitting(*patterns: str) -> list[str]:
        return [layer.name.removeprefix("vision_model.encoder.layers.") for layer in matching(layers, patterns)]

    assert fitting("*.mlp.fc2") == [f"{i}.mlp.fc2" for i in range(4)]
    assert fitting("*.0.mlp.fc?", "*.[13].self_attn.qkv") == [
        "0.mlp.fc1", "0.mlp.fc2", "1.self_attn.qkv", "3.self_attn.qkv"
    ]  # fmt: skip
    assert fitting("mlp.fc2") == fitting("*.MLP.fc2") == fitting() == []
    assert fitting("*") == fitting("*", "*.fc1") and len(fitting("*")) == 16


def test_names_as_reports_and_messages_have_them_are_patterns(demo_bundle: Path, float_graphs: Graphs) -> None:
    for name, graph in float_graphs(demo_bundle).items():
        for layer in graph.layers:
            options = shlex.split(exclude_options([layer.name]))
            assert options[0] == "--exclude" and list(matching(graph.layers, (options[1],), name)) == [layer]
            assert list(matching(graph.layers, (f"{name}: {layer.name}",), name)) == [layer]
            assert not list(matching(graph.layers, (f"other: {layer.name}",), name))
    odd = replace(layer, name="blocks[0].fc")
    assert list(matching((odd,), ("blocks[0].fc",))) == [odd]


def test_a_layer_of_its_own_is_the_product(demo_bundle: Path, float_graphs: Graphs) -> None:
    layer = next(layer for layer in float_graphs(demo_bundle)["language_model"].layers if layer.name == "head")
    model = single_layer(layer)
    onnx.checker.check_model(model, full_check=True)
    x = np.random.default_rng(0).normal(size=(3, layer.depth)).astype(np.float32)
    (found,) = onnx.reference.ReferenceEvaluator(model).run(None, {layer.input: x})
    np.testing.assert_allclose(found, x @ layer.weight(), rtol=1e-5, atol=1e-5)
    assert isinstance(layer, Layer) and model.opset_import[0].version == layer.opset == 24
