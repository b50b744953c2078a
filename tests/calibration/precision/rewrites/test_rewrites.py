"""Fitted graphs output what they did before, bit for bit, and have the forms that are faster."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from catp.calibration.precision.formats.base import Range
from catp.calibration.precision.graphs.graph import serialized
from catp.calibration.precision.recipe import make_recipe
from catp.calibration.precision.rewrites import fit_to_cpu
from catp.calibration.precision.rewrites.flat_rows import leave_rows_as_they_are
from catp.calibration.precision.rewrites.heads import split_heads_inside
from catp.calibration.precision.rewrites.joint_products import join_products
from catp.calibration.precision.rewrites.parted_products import part_products
from catp.calibration.precision.rewrites.votes import count_in_integers
from catp.runtime.bundle.chains import GRAPHS

BUNDLES = ("demo_bundle", "odd_bundle")
"""The second has gates, grouped heads, another number of queries, and no biases in its language model."""


@pytest.fixture
def quantised(request: pytest.FixtureRequest, float_graphs: Callable) -> Callable[..., tuple[ir.Model, Path]]:
    """`quantised(bundle, graph, format)`: every layer exchanged, nothing fitted."""

    def make(
        bundle: str, graph: str, format: str = "int8", activations: str | None = "dynamic"
    ) -> tuple[ir.Model, Path]:
        folder = request.getfixturevalue(bundle)
        found = float_graphs(folder)[graph]
        recipe = make_recipe(format, "cpu", None if format == "int4" else activations)  # type: ignore[arg-type]
        ranges = {layer.input: Range(-2.0, 3.0) for layer in found.layers}
        return found.exchanged({layer.name: recipe.fragment(layer, ranges) for layer in found.layers}), folder

    return make


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize(
    ("format", "activations"), [("int8", "dynamic"), ("int8", "static"), ("int4", None)], ids=lambda value: str(value)
)
@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("bundle", BUNDLES)
def test_outputs_stay_as_they_were(
    bundle: str, graph: str, format: str, activations: str | None, quantised: Callable, run: Callable, feeds: Callable
) -> None:
    model, folder = quantised(bundle, graph, format, activations)
    inputs = feeds(folder, graph)
    before = serialized(model)
    wanted = run(before, folder, inputs)
    fit_to_cpu(model)
    after = serialized(model)
    assert (after != before) == ((bundle, graph) != ("odd_bundle", "language_model"))  # Llama, prompts included
    found = run(after, folder, inputs)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        if format == "int4" or graph == "language_model":  # sums of blocks, and products with a scale, round otherwise
            np.testing.assert_allclose(found[name], array, rtol=1e-3, atol=2e-3 * np.abs(array).max(), err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], array, name)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_an_encoder_splits_its_heads_inside(bundle: str, quantised: Callable) -> None:
    model, _ = quantised(bundle, "vision_encoder")
    before = operators(model)
    split_heads_inside(model.graph)
    after = operators(model)
    layers = before["Attention"]
    assert after["Attention"] == layers and after["Split"] == layers and not after["Gather"]
    assert before["Transpose"] - after["Transpose"] == 2 * layers == before["Reshape"] - after["Reshape"]
    heads = {
        tuple(node.attributes[name].value for name in ("q_num_heads", "kv_num_heads"))
        for node in model.graph
        if node.op_type == "Attention"
    }
    assert len(heads) == 1 and 0 not in next(iter(heads))


@pytest.mark.parametrize(("bundle", "broadcast"), [("demo_bundle", 1), ("odd_bundle", 1)])
def test_probabilities_that_are_voted_by_come_from_the_operator(
    bundle: str, broadcast: int, quantised: Callable
) -> None:
    """Queries of the first layer are one row for all images, which it would not broadcast."""
    model, _ = quantised(bundle, "qformer_voting")
    before = operators(model)
    split_heads_inside(model.graph)
    after = operators(model)
    voting = [n for n in model.graph if n.op_type == "Attention" and "qk_matmul_output_mode" in n.attributes]
    assert len(voting) == before["Softmax"] - after["Softmax"] and after["Softmax"] == broadcast
    for node in voting:
        assert node.outputs[3].uses() and node.outputs[0].uses()


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_rows_are_not_flattened(format: str, quantised: Callable) -> None:
    """OPT's feed-forward layers do that, twice each; what reshapes heads stays."""
    model, _ = quantised("demo_bundle", "language_model", format)
    before = operators(model)
    leave_rows_as_they_are(model.graph)
    after = operators(model)
    assert before["Reshape"] - after["Reshape"] == 2 * before["Attention"]
    assert before["Transpose"] == after["Transpose"]
    norms = [node.outputs[0].shape for node in model.graph if node.op_type == "LayerNormalization"]
    assert {len(shape) for shape in norms} == {3}


def test_rows_that_something_else_reads_stay_flat(quantised: Callable) -> None:
    model, _ = quantised("demo_bundle", "language_model")
    flat = next(n.outputs[0] for n in model.graph if n.op_type == "LayerNormalization" and len(n.outputs[0].shape) == 2)
    user = next(iter(flat.uses())).node
    size = ir.Node("", "Shape", [flat], outputs=[ir.Value(name="rows")], name="rows")
    model.graph.insert_before(user, size)
    before = operators(model)
    leave_rows_as_they_are(model.graph)
    layers = before["Attention"]
    assert before["Reshape"] - operators(model)["Reshape"] == 2 * (layers - 1)


def test_attention_over_a_cache_keeps_its_heads_apart(quantised: Callable) -> None:
    """And takes the factor that OPT multiplies its queries with."""
    model, _ = quantised("demo_bundle", "language_model")
    before = operators(model)
    split_heads_inside(model.graph)
    after = operators(model)
    assert before["Mul"] - after["Mul"] == before["Attention"] and after["Transpose"] == before["Transpose"]
    for node in model.graph:
        if node.op_type == "Attention":
            assert "q_num_heads" not in node.attributes
            assert node.attributes["scale"].value == pytest.approx(node.inputs[0].shape[3] ** -0.5)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_decode_steps_attend_in_one_operator(
    bundle: str, float_graphs: Callable, run: Callable, feeds: Callable, request: pytest.FixtureRequest
) -> None:
    """In floating point, where nothing hides a difference; rows write at different slots. Llama's heads are turned by
    position before they are stored, so its graph stays as it is."""
    folder = request.getfixturevalue(bundle)
    graph = float_graphs(folder)["language_model"]
    rng = np.random.default_rng(3)
    inputs = feeds(folder, "language_model")
    inputs |= {name: rng.normal(size=array.shape).astype("f") for name, array in inputs.items() if "past_" in name}
    width = inputs["prefix_embeds"].shape[2]
    inputs |= {
        "input_ids": inputs["input_ids"][:, :1],
        "prefix_embeds": np.zeros((2, 0, width), np.float32),
        "prefix_positions": np.zeros((2, 0), np.int64),
        "write_indices": np.array([9, 4]),
        "last_indices": np.zeros(2, np.int64),
    }
    model = graph.exchanged({})
    wanted = run(serialized(model), folder, inputs)
    before = operators(model)
    fit_to_cpu(model, decodes=True)
    after = operators(model)
    fitted = before["Attention"] if bundle == "demo_bundle" else 0
    assert after["GroupQueryAttention"] == before["TensorScatter"] // 2 - after["TensorScatter"] // 2 == fitted
    found = run(serialized(model), folder, inputs)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        for row, written in enumerate(inputs["write_indices"]):
            # Of a cache that is not written in place, slots that no token has reached yet are not copied.
            seen = np.s_[row, :, : written + 1] if name.startswith("present.") else np.s_[row]
            np.testing.assert_allclose(found[name][seen], array[seen], rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(("bundle", "each"), [("demo_bundle", 2), ("odd_bundle", 3)])
def test_products_of_one_input_become_one(
    bundle: str, each: int, quantised: Callable, run: Callable, feeds: Callable
) -> None:
    """Queries, keys and values; of Llama gate and rise as well."""
    model, folder = quantised(bundle, "language_model", "int4")
    inputs = feeds(folder, "language_model")
    wanted = run(serialized(model), folder, inputs)
    before = operators(model)
    join_products(model.graph)
    after = operators(model)
    assert before["MatMulNBits"] - after["MatMulNBits"] == each * before["Attention"]
    readers = Counter(node.inputs[0].name for node in model.graph if node.op_type == "MatMulNBits")
    assert set(readers.values()) == {1}
    for name, array in run(serialized(model), folder, inputs).items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=2e-3 * np.abs(array).max(), err_msg=name)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_product_that_is_taken_apart_becomes_several(bundle: str, quantised: Callable) -> None:
    """Queries, keys and values of a vision encoder, which are one matrix in the checkpoint."""
    model, _ = quantised(bundle, "vision_encoder")
    split_heads_inside(model.graph)
    before = operators(model)
    part_products(model.graph)
    after = operators(model)
    assert before["Split"] == before["Attention"] > 0 and after["Split"] == 0
    assert after["MatMulInteger"] - before["MatMulInteger"] == 2 * before["Attention"]
    assert after["DynamicQuantizeLinear"] == before["DynamicQuantizeLinear"]
    stored = {value.name for value in model.graph.initializers.values()}
    assert stored == {value.name for node in model.graph for value in node.inputs if value and value.is_initializer()}


@pytest.mark.parametrize("bundle", BUNDLES)
def test_votes_are_counted_in_integers(bundle: str, quantised: Callable) -> None:
    model, _ = quantised(bundle, "qformer_voting")
    before = operators(model)
    count_in_integers(model.graph)
    after = operators(model)
    exchanged = after["MatMulInteger"] - before["MatMulInteger"]
    assert exchanged == before["ReduceSum"] - after["ReduceSum"] == after["Squeeze"] - before["Squeeze"] > 0
    compared = [node.outputs[0] for node in model.graph if node.op_type == "Greater"]
    kinds = {usage.node.attributes["to"].value for value in compared for usage in value.uses()}
    assert ir.DataType.UINT8.value in kinds
