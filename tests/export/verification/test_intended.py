"""Infinities that a graph means, and those that it doesn't."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from catp.export.verification.emulation import SUMS, emulate
from catp.export.verification.intended import reads_infinity

MASKS = {"infinite": -np.inf, "lowest": -65504.0}


def model_of(nodes: list[onnx.NodeProto], *outputs: str, **constants: np.ndarray) -> onnx.ModelProto:
    """A float16 model of "x" [2, 4]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [2, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, None) for name in outputs],
        [numpy_helper.from_array(constant, name) for name, constant in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)


def not_finite(model: onnx.ModelProto, x: list[list[float]]) -> list[str]:
    """The operators whose results are watched and not finite."""
    watched = emulate(model)
    session = ort.InferenceSession(model.SerializeToString())
    (sums,) = session.run([SUMS], {"x": np.array(x, np.float32)})
    return [one.operator for one, total in zip(watched, sums) if not np.isfinite(total)]


def masked(lowest: float, reader: str = "Softmax", weight: float = 1, hidden: bool = False) -> onnx.ModelProto:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], name="scores"),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"], name="scale"),
        helper.make_node("Where", ["seen", "zero", "lowest"], ["mask"], name="mask"),
        helper.make_node("Add", ["scaled", "mask"], ["sum"], name="sum"),
        helper.make_node(reader, ["sum"], ["y"], name="reader"),
    ]
    seen = np.array([[True, True, False, True], [True, False, False, True]]) & (not hidden)
    constants = {"w": np.eye(4) * weight, "scale": np.array(0.5), "zero": np.array(0), "lowest": np.array(lowest)}
    return model_of(nodes, "y", seen=seen, **{name: value.astype(np.float16) for name, value in constants.items()})


@pytest.mark.parametrize("lowest", MASKS.values(), ids=MASKS)
def test_masks_that_softmax_reads_are_meant(lowest: float) -> None:
    x = [[1, 2, -200, 3], [4, -300, 5, 6]]  # with the lowest number, the sum of a masked one is beyond it
    assert not_finite(masked(lowest), x) == []
    # That comes from data, although softmax would give 0 for it.
    assert not_finite(masked(lowest, weight=300), x) == ["MatMul scores"]


def test_a_mask_that_hides_everything_is_no_number() -> None:
    assert not_finite(masked(-np.inf, hidden=True), [[1, 2, 3, 4]] * 2) == ["Softmax reader"]


def test_what_something_else_reads_too_is_not_meant() -> None:
    assert not_finite(masked(-np.inf, "Relu"), [[1, 2, 3, 4]] * 2) == ["Where mask", "Add sum"]
    model = masked(-np.inf)
    model.graph.output.append(helper.make_tensor_value_info("sum", TensorProto.FLOAT16, None))
    assert not_finite(model, [[1, 2, 3, 4]] * 2) == ["Where mask", "Add sum"]


def test_what_saturates_may_read_infinity() -> None:
    """GELU by tanh, as Hugging Face computes Flan-T5's: a cube is beyond fp16 from 40.3 on, and its tanh is 1."""
    nodes = [
        helper.make_node("Pow", ["x", "three"], ["cube"], name="cube"),
        helper.make_node("Mul", ["cube", "a"], ["part"], name="part"),
        helper.make_node("Add", ["x", "part"], ["sum"], name="sum"),
        helper.make_node("Mul", ["sum", "b"], ["inner"], name="inner"),
        helper.make_node("Tanh", ["inner"], ["t"], name="tanh"),
        helper.make_node("Add", ["t", "one"], ["t1"], name="t1"),
        helper.make_node("Mul", ["x", "half"], ["x2"], name="x2"),
        helper.make_node("Mul", ["x2", "t1"], ["y"], name="y"),
    ]
    constants = {"three": 3, "a": 0.044715, "b": 0.797884, "one": 1, "half": 0.5}
    model = model_of(nodes, "y", **{name: np.array(value, np.float16) for name, value in constants.items()})
    assert not_finite(model, [[39, 41, -300, 0], [1, 60000, -60000, 2]]) == []
    nodes[4] = helper.make_node("Identity", ["inner"], ["t"], name="tanh")
    model = model_of(nodes, "y", **{name: np.array(value, np.float16) for name, value in constants.items()})
    assert not_finite(model, [[41, 0, 0, 0], [0, 0, 0, 0]])[0] == "Pow cube"


def test_what_is_limited_may_be_infinite_before() -> None:
    """Hugging Face's T5 limits its hidden states in fp16."""
    nodes = [
        helper.make_node("Add", ["x", "x"], ["sum"], name="sum"),
        helper.make_node("Cast", ["sum"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("IsInf", ["wide"], ["any"]),
        helper.make_node("Where", ["any", "lower", "largest"], ["limit"], name="limit"),
        helper.make_node("Min", ["sum", "limit"], ["y"], name="limited"),
    ]
    limits = {"lower": np.array(64504, np.float16), "largest": np.array(65504, np.float16)}
    assert not_finite(model_of(nodes, "y", **limits), [[4e4, 1, 2, 3], [1, 2, 3, 4]]) == []
    # Only from above: what is below stays infinite, and is found where nothing limits it any more.
    assert not_finite(model_of(nodes, "y", **limits), [[-4e4, 1, 2, 3], [1, 2, 3, 4]]) == ["Min limited"]


def test_only_the_mask_of_attention_is_one() -> None:
    for place, meant in (("query", False), ("mask", True)):
        inputs = {"query": ["sum", "k", "k"], "mask": ["q", "k", "k", "sum"]}[place]
        nodes = [
            helper.make_node("Add", ["x", "x"], ["sum"], name="sum"),
            helper.make_node("Attention", inputs, ["y"], name="attention"),
        ]
        assert reads_infinity(model_of(nodes, "y").graph) == ({"sum"} if meant else set())
