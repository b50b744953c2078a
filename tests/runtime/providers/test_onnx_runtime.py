"""What ONNX Runtime's Python interface does not do by itself: bfloat16 tensors, and saying why a graph can't run."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from catp.runtime import Pipeline, UsageError
from catp.runtime.providers.onnx_runtime import OrtEngine


def open_engine(
    nodes: list[onnx.NodeProto], inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]
) -> OrtEngine:
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)
    return OrtEngine(ort.InferenceSession(model.SerializeToString()), "cpu")


def test_a_bf16_bundle_is_refused_on_the_cpu_with_a_way_out(bf16_bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"provider cpu: bundle .* is in bf16") as caught:
        Pipeline.load(bf16_bundle)
    message = str(caught.value)
    assert "accepted: cuda, tensorrt, tensorrt-rtx" in message and "--precision fp32 or fp16" in message
    assert "\n" not in message


def test_a_bfloat16_cache_is_written_in_place() -> None:
    """With operators that move values, and so run in bfloat16 on a CPU too."""
    shape = [2, 1, 4, 3]
    nodes = [
        helper.make_node("Cast", ["new"], ["narrow"], to=TensorProto.BFLOAT16),
        helper.make_node("TensorScatter", ["past", "narrow", "slots"], ["present"], axis=2),
        helper.make_node("Cast", ["present"], ["seen"], to=TensorProto.FLOAT),
    ]
    inputs = [
        helper.make_tensor_value_info("past", TensorProto.BFLOAT16, shape),
        helper.make_tensor_value_info("new", TensorProto.FLOAT, [2, 1, 1, 3]),
        helper.make_tensor_value_info("slots", TensorProto.INT64, [2]),
    ]
    outputs = [
        helper.make_tensor_value_info("present", TensorProto.BFLOAT16, shape),
        helper.make_tensor_value_info("seen", TensorProto.FLOAT, shape),
    ]
    engine = open_engine(nodes, inputs, outputs)
    cache = engine.zeros(tuple(shape), "bfloat16")
    assert cache.shape == tuple(shape)
    new = np.full((2, 1, 1, 3), 1.5, np.float32)
    step = engine.bind({"past": cache, "new": new, "slots": np.array([0, 2])}, {"present": cache})
    step.run()
    step.update("new", 2 * new)
    step.update("slots", np.array([1, 3]))
    expected = np.zeros(shape, np.float32)
    expected[0, :, :2] = [[1.5] * 3, [3] * 3]
    expected[1, :, 2:] = [[1.5] * 3, [3] * 3]
    np.testing.assert_array_equal(step.run()["seen"].numpy(), expected)


def test_bfloat16_arrays_are_uploaded_bit_by_bit() -> None:
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)]
    values = [helper.make_tensor_value_info(name, t, [3]) for name, t in (("x", 16), ("y", TensorProto.FLOAT))]
    engine = open_engine(nodes, values[:1], values[1:])
    given = np.array([1, -2.5, 3e38], np.float32).astype("bfloat16")
    assert engine.bind({"x": given}).run()["y"].numpy().tolist() == given.astype(np.float32).tolist()


def test_rows_are_the_same_memory() -> None:
    """A step over some rows of a cache writes there and nowhere else."""
    shape = [2, 1, 4, 3]
    rows = ["rows", *shape[1:]]
    nodes = [helper.make_node("TensorScatter", ["past", "new", "slots"], ["present"], axis=2)]
    inputs = [
        helper.make_tensor_value_info("past", TensorProto.FLOAT, rows),
        helper.make_tensor_value_info("new", TensorProto.FLOAT, ["rows", 1, 1, 3]),
        helper.make_tensor_value_info("slots", TensorProto.INT64, ["rows"]),
    ]
    outputs = [helper.make_tensor_value_info("present", TensorProto.FLOAT, rows)]
    engine = open_engine(nodes, inputs, outputs)
    cache = engine.zeros((5, 1, 4, 3), "float32")
    view = cache.rows(2, 2)
    assert view.shape == (2, 1, 4, 3)
    new = np.full((2, 1, 1, 3), 2.5, np.float32)
    step = engine.bind({"past": view, "new": new, "slots": np.array([0, 3])}, {"present": view})
    found = step.run()["present"]
    expected = np.zeros((5, 1, 4, 3), np.float32)
    expected[2, :, 0] = expected[3, :, 3] = 2.5
    np.testing.assert_array_equal(cache.numpy(), expected)
    np.testing.assert_array_equal(found.numpy(), expected[2:4])
    for first, count in ((4, 2), (-1, 1), (0, 0)):
        with pytest.raises(ValueError, match="of 5"):
            cache.rows(first, count)
