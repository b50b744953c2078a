"""BLIP-2 with a Flan-T5 in fewer bits: its encoder, its decoder, and the layers whose activations are hard to store."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.calibration.precision.graphs.graph import FloatGraph, serialized
from catp.calibration.precision.recipe import make_recipe
from catp.calibration.precision.rewrites import fit_to_cpu
from catp.calibration.precision.search.sensitivity import layer_errors
from catp.export.demo import scenes
from catp.export.writing.external_data import save_model
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle

TEXT = ("text_encoder", "text_decoder")
SLOTS = np.array([9, 4])


def feeds(folder: Path, graph: str) -> dict[str, np.ndarray]:
    """Two rows of different length, whose next tokens go to different slots."""
    rng = np.random.default_rng(3)
    sizes: dict[str, int] = {"batch": 2, "seq": 5, "num_kept": 3, "max_length": 16, "encoded": 8}
    values = {
        "prefix_positions": np.array([[0, 2, 5], [1, 3, 4]]),
        "position_start": np.array([24, 24]),
        "lengths": np.array([5, 4]),
        "write_indices": SLOTS,
        "encoded_lengths": np.array([8, 7]),
    }
    inputs = {}
    for spec in open_bundle(folder, verify=False).manifest.graphs[graph].inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in spec.shape]
        drawn = rng.integers(4, 100, shape) if spec.dtype == "int64" else rng.normal(size=shape)
        inputs[spec.name] = values.get(spec.name, drawn).astype(spec.dtype)
    return inputs


def products(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_each_graph_gets_its_own_format(t5_bundle: Path, tmp_path: Path) -> None:
    """The decoder reads one token a row, so it is what `--decode` names: no second copy of the weights is made."""
    few = ["--for", "cpu", "--samples", "16", "--questions", "12", "--no-sensitivity"]
    wide = ["--max-accuracy-drop", "0.9", "--min-kept-overlap", "0"]
    arguments = ["--to", "int8", "--decode", "int4", "--exclude", "*.wo", "-o", str(tmp_path / "made"), *few, *wide]
    result = CliRunner().invoke(app, ["precision", str(t5_bundle), *arguments])
    assert result.exit_code == 0, result.output
    graphs = open_bundle(tmp_path / "made").manifest.graphs
    found = {name: spec.quantization for name, spec in graphs.items()}
    assert list(found) == ["vision_encoder", "qformer_voting", *TEXT]
    assert [q.format for q in found.values() if q is not None] == ["int8", "int8", "int8", "int4"]
    encoder, decoder = (found[name] for name in TEXT)
    assert encoder is not None and decoder is not None
    # One block; q, k, v and o, both of the gate, and what two decoder layers read. Two blocks with q and o to read it.
    assert (encoder.layers, decoder.layers) == (6 + 2 * 2, 2 * (4 + 2 + 2) + 1)
    assert encoder.kept == ("encoder.block.0.layer.1.DenseReluDense.wo",) and len(decoder.kept) == 2
    assert (encoder.tables, decoder.tables) == (1, 1)  # of words; the biases of distances stay
    assert graphs["text_decoder"].bytes < open_bundle(t5_bundle, verify=False).manifest.graphs["text_decoder"].bytes
    joined = products(tmp_path / "made" / "text_decoder.onnx")
    # Queries, keys and values are one product of each layer, and so are gate and rise.
    assert joined["MatMulNBits"] == 2 * (2 + 2 + 1) + 1 and joined["MatMulInteger"] == 0
    pipeline = Pipeline.load(tmp_path / "made")
    asked = list(scenes.examples(2, 5))
    images, prompts = [e.image for e in asked], [e.question.prompt for e in asked]
    together = pipeline.generate(images, prompts, ratio=0.5, max_new_tokens=4)
    assert all(len(answer.token_ids) > 0 and len(answer.kept_indices) == 12 for answer in together)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("name", TEXT)
def test_fitted_graphs_compute_the_same(name: str, format: str, t5_bundle: Path, run: Callable) -> None:
    """With the bias of distances in the decoder's attention, which an operator over the cache would leave out."""
    graph = FloatGraph(name, t5_bundle / f"{name}.onnx")
    recipe = make_recipe(format, "cpu")  # type: ignore[arg-type]
    model = graph.exchanged({layer.name: recipe.fragment(layer, {}) for layer in graph.layers})
    inputs = feeds(t5_bundle, name)
    wanted = run(serialized(model), t5_bundle, inputs)
    before = Counter(node.op_type for node in model.graph)
    fit_to_cpu(model, one_token=name == "text_decoder")
    after = Counter(node.op_type for node in model.graph)
    assert after["Attention"] == before["Attention"] and after["GroupQueryAttention"] == 0
    assert after != before or (name, format) == ("text_decoder", "int8")
    found = run(serialized(model), t5_bundle, inputs)
    assert list(found) == list(wanted)
    for output, array in wanted.items():
        np.testing.assert_allclose(found[output], array, rtol=1e-3, atol=2e-3 * np.abs(array).max(), err_msg=output)


def test_the_biases_of_distances_are_no_table(t5_bundle: Path) -> None:
    for name in TEXT:
        tables = [layer for layer in FloatGraph(name, t5_bundle / f"{name}.onnx").layers if layer.is_table]
        assert [layer.depth for layer in tables] == [384]  # words


def test_what_overflows_in_fp16_is_measured_as_the_worst(t5_bundle: Path, tmp_path: Path) -> None:
    """A feed-forward layer with channels as large as T5's: the same in floating point, hard to store in INT8."""
    model_path = t5_bundle / "text_encoder.onnx"
    model = ir.load(model_path)
    layers = {layer.name.rpartition(".")[2]: layer.node for layer in FloatGraph("text_encoder", model_path).layers}
    nodes = {node.name: node for node in model.graph}
    for layer, axis, factor in (("wi_1", 1, 1000.0), ("wo", 0, 1 / 1000.0)):
        value = nodes[layers[layer]].inputs[1]
        assert value is not None and value.const_value is not None
        weight = value.const_value.numpy().copy()
        weight[(slice(None),) * axis + (slice(0, 3),)] *= factor
        value.const_value = ir.tensor(weight, name=value.name)
    save_model(model, tmp_path / "text_encoder.onnx")
    errors = {}
    for kind, folder in (("plain", t5_bundle), ("large", tmp_path)):
        graph = FloatGraph("text_encoder", folder / "text_encoder.onnx")
        recipe = make_recipe("int8", "cpu")
        fragments = {layer.name: recipe.fragment(layer, {}) for layer in graph.layers}
        measured = layer_errors(graph, fragments, "cpu", [feeds(t5_bundle, "text_encoder")])
        errors[kind] = {error.layer.rpartition(".")[2]: error.error for error in measured}
    assert max(errors["large"], key=lambda layer: errors["large"][layer]) == "wo"
    assert errors["large"]["wo"] > 3 * errors["plain"]["wo"]


@pytest.mark.heavy
def test_half_precision_keeps_its_float32_layers(t5_checkpoint: Path, tmp_path: Path) -> None:
    """For TensorRT, from a bundle in which `wo` alone is float32."""
    from catp.export.exporter import export_bundle

    export_bundle(str(t5_checkpoint), tmp_path / "half", precision="fp16")
    few = ["--samples", "16", "--questions", "12", "--no-sensitivity", "--max-accuracy-drop", "0.9"]
    report = tmp_path / "report.json"
    arguments = ["--to", "int8", "--for", "tensorrt", "--min-kept-overlap", "0", *few, "--report", str(report)]
    result = CliRunner().invoke(app, ["precision", str(tmp_path / "half"), "-o", str(tmp_path / "made"), *arguments])
    assert result.exit_code == 0, result.output
    assert json.loads(report.read_text())["confirmed"]
    graph = onnx.load(tmp_path / "made" / "text_encoder.onnx", load_external_data=False).graph
    types = {t.name: t.data_type for t in graph.initializer if t.name.endswith("scale")}
    assert {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16} <= set(types.values())
