"""Half-precision graphs rewritten to float32 ones that compute the same, and tell where a result is no finite number.

ONNX Runtime's CPU provider computes no bfloat16, and float16 in float32, where nothing overflows. Here every operator
computes in float32, and what is a half-precision tensor in the bundle is rounded to it after it: from 65520 on a
float16 becomes infinite, as on a GPU. Weights stay where they are, in half precision, and are cast up. What a kernel
rounds inside an operator is not emulated: of Attention, only the result is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx
from onnx import TensorProto, helper

from catp.export.graphs.scopes import SCOPES, module_of
from catp.export.verification.intended import reads_infinity

HALF: dict[int, str] = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
WIDER = {"fp16": "bf16 or fp32", "bf16": "fp32"}
LARGEST: dict[int, str] = {TensorProto.FLOAT16: "65504", TensorProto.BFLOAT16: "3.39e38"}

SUMS = "sums_of_results"
"""The output that a rewritten graph gets: of each watched result, the sum of its absolute values. It is finite where
all of them are, and no tensor has so many elements that it would not be."""

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")


@dataclass(frozen=True)
class Watched:
    """One result that has to be finite."""

    kind: int  # of half precision
    operator: str
    layer: str | None  # the module that it belongs to

    def describe(self, total: float) -> str:
        """For people; `total`: the sum of its absolute values, which is infinite or no number."""
        what = "is not a number" if math.isnan(total) else f"exceeds {LARGEST[self.kind]}, the largest number"
        where = f"{self.layer}: " if self.layer else ""
        return f"{where}the result of {self.operator} {what} in {HALF[self.kind]}"


def emulate(model: onnx.ModelProto) -> tuple[Watched, ...]:
    """Rewrite a model in place: its half-precision inputs, outputs and intermediate tensors become float32, rounded.

    Returns what is watched, in the order of SUMS; without half-precision tensors there is neither.
    """
    graph = model.graph
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    narrow = {
        value.name: value.type.tensor_type.elem_type
        for value in (*graph.input, *inferred, *graph.output)
        if value.type.tensor_type.elem_type in HALF
    }
    awaited = reads_infinity(graph)
    watched: dict[str, Watched] = {}  # by tensor
    nodes = [*_widened_weights(graph)]
    rounded = {value.name: f"{value.name}.rounded" for value in graph.input if value.name in narrow}
    for name, target in rounded.items():
        nodes += [*_rounding(name, target, narrow[name]), _sum(target)]
        watched[target] = Watched(narrow[name], "rounding it", f"its input {name}")
    for node in graph.node:
        _compute_in_float32(node)
        results = [name for name in node.output if name in narrow]
        node.input[:] = [rounded.get(name, name) for name in node.input]
        node.output[:] = [f"{name}.exact" if name in narrow else name for name in node.output]
        nodes.append(node)
        # Once too often after an operator that only moves values, which changes none of them.
        for name in results:
            nodes += _rounding(f"{name}.exact", name, narrow[name])
            if name not in awaited:
                nodes.append(_sum(name))  # here, so that in this order nothing waits for it
                watched[name] = Watched(narrow[name], f"{node.op_type} {node.name}", _layer(node, graph))
    for value in (*graph.input, *graph.output):
        if value.name in narrow:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    del graph.value_info[:]  # of types that are no more
    del graph.node[:]
    graph.node.extend(nodes)
    if watched:
        graph.node.extend(_sums(watched))
        graph.output.append(helper.make_tensor_value_info(SUMS, TensorProto.FLOAT, [len(watched)]))
    return tuple(watched.values())


def _widened_weights(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Rename the half-precision weights; the casts that make float32 tensors of their old names."""
    for tensor in graph.initializer:
        if tensor.data_type in HALF:
            name, tensor.name = tensor.name, f"{tensor.name}.half"
            yield _cast(tensor.name, name, TensorProto.FLOAT)


def _rounding(source: str, target: str, kind: int) -> list[onnx.NodeProto]:
    """`target`: `source`, rounded to half precision, in float32."""
    return [_cast(source, f"{target}.half", kind), _cast(f"{target}.half", target, TensorProto.FLOAT)]


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], to=to)


def _compute_in_float32(node: onnx.NodeProto) -> None:
    """A cast to half precision becomes one to float32; other operators have their inputs' type."""
    for attribute in node.attribute:
        if attribute.name in _TYPE_ATTRIBUTES and attribute.i in HALF:
            attribute.i = TensorProto.FLOAT
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type in HALF:
            content = onnx.numpy_helper.to_array(attribute.t).astype("float32")
            attribute.t.CopyFrom(onnx.numpy_helper.from_array(content, attribute.t.name))


def _sum(name: str) -> onnx.NodeProto:
    return helper.make_node("ReduceL1", [name], [f"{name}.sum"], keepdims=0)


def _sums(watched: Iterable[str]) -> list[onnx.NodeProto]:
    return [
        helper.make_node("SequenceConstruct", [f"{name}.sum" for name in watched], [f"{SUMS}.sequence"]),
        helper.make_node("ConcatFromSequence", [f"{SUMS}.sequence"], [SUMS], axis=0, new_axis=1),
    ]


def _layer(node: onnx.NodeProto, graph: onnx.GraphProto) -> str | None:
    """The module that a node came from; where that is not known, the one that a weight of it belongs to."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    if found := module_of(scopes):
        return found
    weights = {tensor.name.removesuffix(".half") for tensor in graph.initializer}
    return next((name.rpartition(".")[0] for name in node.input if name in weights and "." in name), None)
