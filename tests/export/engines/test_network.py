"""Nothing that a graph says is dropped on the way into TensorRT."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from catp.export.engines.network import parse
from catp.export.engines.prepare import fix_dimensions, leave_out_refused
from catp.export.engines.targets import Builder, check_types, choose_capabilities, open_target
from catp.runtime import CatpError, UsageError
from catp.runtime.bundle.manifest import FileSpec, GraphSpec, TensorSpec
from catp.runtime.providers.cuda import compute_capability

pytest.importorskip("tensorrt_rtx")


@pytest.fixture(scope="module")
def target() -> Builder:
    return open_target("tensorrt-rtx")


def attention(extra_inputs: tuple[str, ...] = (), **attributes: Any) -> tuple[onnx.ModelProto, GraphSpec]:
    """A graph of one Attention operator, and what its manifest would say."""
    shape = [1, 4, 8, 32]
    inputs = dict.fromkeys(("q", "k", "v"), (TensorProto.FLOAT16, shape))
    inputs |= {name: (TensorProto.INT64, [1]) for name in extra_inputs}
    node = helper.make_node("Attention", ["q", "k", "v", "", "", "", *extra_inputs], ["y"], scale=0.1, **attributes)
    values = [helper.make_tensor_value_info(name, dtype, dims) for name, (dtype, dims) in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT16, shape)
    model = helper.make_model(
        helper.make_graph([node], "attention", values, [output]), opset_imports=[helper.make_opsetid("", 24)]
    )
    names = {TensorProto.FLOAT16: "float16", TensorProto.INT64: "int64"}
    spec = GraphSpec(
        file=FileSpec(path="g.onnx", size=0, sha256="0" * 64),
        precision="fp16",
        inputs=tuple(TensorSpec(name=n, dtype=names[d], shape=tuple(s)) for n, (d, s) in inputs.items()),
        outputs=(TensorSpec(name="y", dtype="float16", shape=tuple(shape)),),
        operators=1,
        parameters=0,
    )
    return model, spec


def test_a_graph_it_knows_is_parsed_whole(target: Builder) -> None:
    model, spec = attention()
    network = parse(target, model, Path("g.onnx"), spec, {})
    assert network.layers()["ATTENTION_INPUT"] == 1
    assert network.tensors({}) == (spec.inputs, spec.outputs)


def test_an_input_that_loses_its_effect_is_an_error(target: Builder) -> None:
    # TensorRT-RTX parses nonpad_kv_seqlen without a word, and attends to the padding.
    model, spec = attention(extra_inputs=("lengths",))
    with pytest.raises(CatpError, match=r"does not use lengths: TensorRT dropped it"):
        parse(target, model, Path("g.onnx"), spec, {})


def test_an_attribute_it_refuses_is_an_error_unless_left_out_knowingly(target: Builder) -> None:
    model, spec = attention(softmax_precision=1)
    with pytest.raises(CatpError, match="softmax precision"):
        parse(target, model, Path("g.onnx"), spec, {})
    assert leave_out_refused(model) == ("Attention.softmax_precision",)
    parse(target, model, Path("g.onnx"), spec, {})
    model, spec = attention(softcap=2.0)
    assert leave_out_refused(model) == ()
    with pytest.raises(CatpError, match="softcap"):
        parse(target, model, Path("g.onnx"), spec, {})


def test_a_network_unlike_the_manifest_is_an_error(target: Builder) -> None:
    model, spec = attention()
    other = spec.model_copy(update={"outputs": (TensorSpec(name="y", dtype="float32", shape=(1, 4, 8, 32)),)})
    with pytest.raises(CatpError, match="differs from the graph in y"):
        parse(target, model, Path("g.onnx"), other, {})


def test_fixing_a_dimension_makes_it_a_number_everywhere() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "k"])
    number = helper.make_tensor_value_info("k", TensorProto.INT64, [1])
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "k"])
    node = helper.make_node("TopK", ["x", "k"], ["y", "i"])
    model = helper.make_model(helper.make_graph([node], "g", [value, number], [output]))
    fix_dimensions(model, {"k": 3})
    assert [tensor.name for tensor in model.graph.input] == ["x"]
    assert onnx.numpy_helper.to_array(model.graph.initializer[0]).tolist() == [3]
    assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 3
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"


@pytest.mark.parametrize(
    ("data_type", "capability", "name"),
    [
        (TensorProto.FLOAT8E4M3FN, "8.6", "FP8"),
        (TensorProto.FLOAT, "7.5", "FP32"),
        (TensorProto.INT4, "7.5", "INT4"),
        (TensorProto.BFLOAT16, "7.5", "BF16"),
    ],
)
def test_types_that_a_device_lacks_are_refused(data_type: int, capability: str, name: str) -> None:
    weight = helper.make_tensor("w", data_type, [2, 2], np.zeros(4, np.float32))
    model = helper.make_model(helper.make_graph([], "g", [], [], [weight]))
    with pytest.raises(UsageError, match=f"{name}, which compute capability {capability} does not have"):
        check_types("g", model, ["8.9", capability])
    check_types("g", model, ["8.9"])


@pytest.mark.parametrize(("wanted", "note"), [("9.0", "Hopper"), ("8.7", "Orin"), ("3.5", "accepted: 7.5")])
def test_capabilities_it_can_not_build_for_are_named(target: Builder, wanted: str, note: str) -> None:
    with pytest.raises(UsageError, match=note) as caught:
        choose_capabilities(target, [wanted])
    assert "8.6, 8.9" in str(caught.value)


@pytest.mark.skipif(compute_capability() is not None, reason="there is a GPU")
def test_without_a_gpu_a_capability_must_be_named(target: Builder) -> None:
    with pytest.raises(UsageError, match="name one or more with --compute-capability"):
        choose_capabilities(target, [])
    assert choose_capabilities(target, ["8.9", "8.6", "8.9"]) == ("8.9", "8.6")
    with pytest.raises(UsageError, match="builds on a GPU, and none was found"):
        choose_capabilities(Builder("tensorrt", target.trt), [])
