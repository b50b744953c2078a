"""What a graph may have is what these programs write: everything else is refused before ONNX Runtime sees it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from bundles import relist
from onnx import TensorProto, helper

from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.graph_shape import refusal
from catp.runtime.bundle.protobuf import MalformedError, UnknownFieldError, read
from catp.runtime.errors import BundleError

WEIGHTS = b"g.onnx_data"


def make(change: Callable[[onnx.ModelProto], object] = lambda _: None) -> bytes:
    """A model with one Relu and one weight, changed."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [3]) for name in "xy"]
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3], [1, 2, 3])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)])
    change(model)
    return model.SerializeToString()


def node(operator: str, domain: str = "", **attributes: object) -> Callable[[onnx.ModelProto], object]:
    return lambda model: model.graph.node.append(helper.make_node(operator, ["x"], ["z"], domain=domain, **attributes))


def external(location: str, more: tuple[tuple[str, str], ...] = ()) -> Callable[[onnx.ModelProto], object]:
    def change(model: onnx.ModelProto) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("float_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (*more, ("location", location), ("offset", "0"), ("length", "12")):
            tensor.external_data.add(key=key, value=value)

    return change


def inner() -> onnx.GraphProto:
    return helper.make_graph([], "inner", [], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3])])


def function(model: onnx.ModelProto) -> None:
    body = [helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(helper.make_function("", "Relu", ["a"], ["b"], body, [helper.make_opsetid("", 24)]))


def sparse(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.append(1 << 40)


def reference(model: onnx.ModelProto) -> None:
    model.graph.node[0].attribute.add(name="alpha", ref_attr_name="outer", type=onnx.AttributeProto.FLOAT)


def overload(model: onnx.ModelProto) -> None:
    model.graph.node[0].overload = "other"


def length(content: bytes) -> bytes:
    number, found = len(content), bytearray()
    while number > 0x7F:
        found.append(0x80 | number & 0x7F)
        number >>= 7
    found.append(number)
    return bytes(found)


def test_what_exports_write_is_let_through() -> None:
    assert refusal(make(), None) is None
    assert refusal(make(node("Softmax", axis=1)), None) is None
    assert refusal(make(node("MatMulNBits", "com.microsoft", K=1, N=1)), None) is None
    assert refusal(make(external("g.onnx_data")), WEIGHTS) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (node("Loop", body=inner()), "field 6"),
        (node("If", then_branch=inner(), else_branch=inner()), "field 6"),
        (node("SequenceMap"), "operator 'SequenceMap'"),
        (node("NonZero"), "operator 'NonZero'"),
        (node("Relu", "ai.onnx.ml"), r"operator 'ai\.onnx\.ml\.Relu'"),
        (node("Relu", "com.microsoft"), r"operator 'com\.microsoft\.Relu'"),
        (node("MatMulNBits"), "operator 'MatMulNBits'"),
        (node("Relu\x1b[2J"), r"operator 'Relu\\x1b\[2J'"),
        (node("Relu", hidden=helper.make_tensor("t", TensorProto.FLOAT, [1], [0])), "field 5"),
        (function, "in the model a field 25"),
        (sparse, "in the graph a field 15"),
        (reference, "in an attribute a field 21"),
        (overload, "in an operator a field 8"),
        (external("weights.bin"), "the file 'weights.bin'"),
        (external("sub/g.onnx_data"), "the file 'sub/g.onnx_data'"),
        (external("../g.onnx_data"), "the file '../g.onnx_data'"),
        (external("/etc/passwd"), "the file '/etc/passwd'"),
        (external("*/_ORT_MEM_ADDR_/*"), "_ORT_MEM_ADDR_"),
        (external("other", more=(("location", "g.onnx_data"),)), "the file 'other'"),
    ],
)
def test_everything_else_is_refused(change: Callable[[onnx.ModelProto], object], message: str) -> None:
    reason = refusal(make(change), WEIGHTS)
    assert reason is not None
    with pytest.raises(ValueError, match=message):
        raise ValueError(reason)


def test_without_listed_weights_none_may_be_outside() -> None:
    assert "g.onnx_data" in str(refusal(make(external("g.onnx_data")), None))


def test_a_location_spelled_twice_is_read_as_protobuf_reads_it() -> None:
    """Where a key comes twice the last one counts, and one of another wire type does not."""
    for entry, seen in (
        (b"\x0a\x01x\x0a\x08location\x12\x01f", "location"),
        (b"\x0a\x08location\x12\x01f\x08\x07", "location"),
        (b"\x0a\x08location\x12\x01f\x0a\x01x", "x"),
    ):
        parsed = onnx.StringStringEntryProto.FromString(entry)
        assert parsed.key == seen  # the reference
        tensor = b"\x6a" + length(entry) + entry
        graph = b"\x2a" + length(tensor) + tensor
        refused = refusal(b"\x3a" + length(graph) + graph, WEIGHTS) is not None
        assert refused == (parsed.key == "location")


def test_nesting_costs_no_stack() -> None:
    body = b"\x0a\x00"
    for _ in range(100_000 // 3):
        attribute = b"\x32" + length(body) + body
        operator = b"\x22\x02If\x2a" + length(attribute) + attribute
        body = b"\x0a" + length(operator) + operator
        if len(body) > 200_000:  # each level copies what is below it
            break
    assert "field 6" in str(refusal(b"\x3a" + length(body) + body, None))


def test_bytes_that_are_no_model_are_refused_wherever_they_break() -> None:
    whole = make(external("g.onnx_data"))
    for end in range(1, len(whole)):
        refusal(whole[:end], WEIGHTS)  # a prefix may be a model; none may raise
    assert "no ONNX file" in str(refusal(whole[:-1], WEIGHTS))
    assert "no ONNX file" in str(refusal(b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", None))  # a length without end
    assert "no ONNX file" in str(refusal(b"\x3b", None))  # a group
    assert "field 1000" in str(refusal(b"\xc0\x3e\x00", None))


def test_the_reader_agrees_with_protobuf() -> None:
    attribute = helper.make_attribute("a", [1, 300, -1])
    known = dict.fromkeys(range(1, 30), True)
    assert [content for number, content in read(attribute.SerializeToString(), known) if number == 1] == [b"a"]
    with pytest.raises(UnknownFieldError):
        read(attribute.SerializeToString(), {1: True})
    with pytest.raises(MalformedError):
        read(b"\x0a\x05abc", known)


def test_a_graph_that_never_ends_is_refused_before_a_session_is_made(demo_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    model = onnx.load(copy / "vision_encoder.onnx", load_external_data=False)
    model.graph.node.append(helper.make_node("Loop", ["", ""], [], body=inner()))
    (copy / "vision_encoder.onnx").write_bytes(model.SerializeToString())
    relist(copy)
    with pytest.raises(BundleError, match=r"vision_encoder\.onnx has in an attribute a field 6"):
        open_bundle(copy)
