"""The error of single layers: by hand, and against a graph whose weights were edited."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from catp.calibration.precision.formats.base import single_layer
from catp.calibration.precision.ranges.observation import Examples, Inputs, ObservingProvider, answer_each
from catp.calibration.precision.search.sensitivity import COMPARED, layer_errors, relative_change
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.errors import CatpError


def test_relative_change_by_hand() -> None:
    wanted = np.array([1.0, -1.0, 1.0, -1.0])  # standard deviation 1
    assert relative_change(wanted, wanted) == 0
    assert relative_change(wanted + 0.5, wanted) == pytest.approx(0.5)
    assert relative_change(wanted + np.array([0, 0, 0, 2]), wanted) == pytest.approx(1.0)
    assert relative_change(10 * wanted + 3, 10 * wanted + 1) == pytest.approx(0.2)
    # In float16 the squares would be lost.
    assert relative_change(wanted.astype(np.float16), (wanted * 1.001).astype(np.float16)) == pytest.approx(
        1e-3, rel=0.1
    )
    assert relative_change(np.zeros(3), np.zeros(3)) == 0


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_no_error_is_worse_than_what_is_no_number(wrong: float) -> None:
    wanted = np.array([1.0, -1.0, 1.0, -1.0])
    found = wanted.copy()
    found[2] = wrong
    assert relative_change(found, wanted) == np.inf
    assert relative_change(wanted * np.float32(3e38), wanted) < np.inf
    assert relative_change(np.full(4, 0.5), np.ones(4)) > 1e20  # what never changes has no spread to compare with


@pytest.fixture(scope="module")
def calls(demo_bundle: Path, questions: Callable) -> dict[str, list[Inputs]]:
    """Of every graph, with all query tokens kept."""
    examples = Examples()
    bundle = open_bundle(demo_bundle, verify=False)
    asked = list(answer_each(Pipeline(bundle, ObservingProvider({}, {}, examples)), questions(2), (32,)))
    assert len(asked) == 2
    return examples.calls


def test_examples_are_what_graphs_were_given(
    calls: dict[str, list[Inputs]], pipeline: Pipeline, questions: Callable
) -> None:
    for index, question in enumerate(questions(2)):
        pixels = pipeline.preprocess([question.image])
        np.testing.assert_array_equal(calls["vision_encoder"][index]["pixel_values"], pixels)
        embeds = pipeline.encode(pixels)["image_embeds"].numpy()
        np.testing.assert_array_equal(calls["qformer_voting"][index]["image_embeds"], embeds)
        assert calls["qformer_voting"][index]["num_kept"] == [32]
        prefill = calls["language_model"][2 * index]
        assert prefill["input_ids"].tolist() == [pipeline.tokenize(question.prompt)]
        assert prefill["prefix_embeds"].shape == (1, 32, 128) and not prefill["past_key_values.0.key"].any()
        decode = calls["language_model"][2 * index + 1]
        assert decode["prefix_embeds"].shape == (1, 0, 128) and decode["past_key_values.0.key"].any()


@pytest.mark.parametrize(("graph", "at"), [("vision_encoder", 7), ("qformer_voting", 3), ("language_model", 10)])
def test_a_coarse_layer_has_the_largest_error(
    graph: str, at: int, calls: dict[str, list[Inputs]], demo_bundle: Path, float_graphs: Callable, run: Callable
) -> None:
    found = float_graphs(demo_bundle)[graph]
    layers = [layer for layer in found.layers if not layer.is_table]
    coarse = layers[at]
    weight = coarse.weight()
    step = np.abs(weight).max() / 2
    rounded = (np.rint(weight / step) * step).astype(np.float32)
    chosen = [*layers[: at + 1 : 3], coarse, layers[-1]]
    fragments = {layer.name: single_layer(layer).graph for layer in chosen}
    fragments[coarse.name] = single_layer(replace(coarse, _weight=ir.tensor(rounded), _transposed=False)).graph
    advanced: list[None] = []
    errors = list(layer_errors(found, fragments, "cpu", calls[graph], lambda: advanced.append(None)))
    assert [error.layer for error in errors] == list(fragments) and len(advanced) == len(errors)
    worst = max(errors, key=lambda error: error.error)
    assert worst.key == (graph, coarse.name) and worst.megabytes == weight.nbytes / 1e6
    assert all(error.error < 1e-5 for error in errors if error is not worst)

    nan = np.full_like(weight, np.nan)
    fragments[coarse.name] = single_layer(replace(coarse, _weight=ir.tensor(nan), _transposed=False)).graph
    broken = list(layer_errors(found, fragments, "cpu", calls[graph]))
    assert [e.layer for e in broken if e.error == np.inf] == [coarse.name]
    assert {e.key: e.error for e in broken if e.layer != coarse.name} == {
        e.key: e.error for e in errors if e is not worst
    }
    bad = [
        {k: v * np.float32(np.nan) if v.dtype == np.float32 else v for k, v in call.items()} for call in calls[graph]
    ]
    with pytest.raises(CatpError, match=f"{graph}: in floating point it outputs what is no number"):
        list(layer_errors(found, fragments, "cpu", bad))

    # The same graph with the rounded weight in place of the layer's, by onnx alone.
    model = onnx.load(demo_bundle / f"{graph}.onnx")
    plain = {t.name: t for t in model.graph.initializer}
    (node,) = (node for node in model.graph.node if node.name == coarse.node)
    wanted = [run(model.SerializeToString(), demo_bundle, call) for call in calls[graph]]
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    matrix = np.ascontiguousarray(rounded.T) if transposed else rounded
    plain[node.input[1]].CopyFrom(numpy_helper.from_array(matrix, node.input[1]))
    changed = [run(model.SerializeToString(), demo_bundle, call) for call in calls[graph]]
    expected = 0.0
    for name in COMPARED[graph]:
        old, new = (np.concatenate([outputs[name].ravel() for outputs in all]) for all in (wanted, changed))
        expected = max(expected, float(np.sqrt(np.mean((new - old) ** 2)) / old.std()))
    assert worst.error == pytest.approx(expected, rel=1e-2) and expected > 0.02
