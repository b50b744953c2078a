"""Products of one input as one product: queries, keys and values of an attention, gate and rise of an MLP.

For few rows a product's time is that of reading its weights, and every one has its own start: a decode step of 12
layers of 768 in INT4 takes 0.2 ms less of 2.2. Where rows are many, taking the result apart costs what it saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from catp.calibration.precision.fitting.nodes import constant, new_constant, new_node, only_user, producer, take_place

MANY_ROWS = 64
"""Inputs that always have more are left alone: image tokens."""


@dataclass(frozen=True)
class _Product:
    """One quantised product, from its input to its sum with the bias, or to itself."""

    node: ir.Node  # MatMulInteger or MatMulNBits
    result: ir.Value
    columns: int
    bias: ir.Value | None
    scales: ir.Value | None = None  # of MatMulInteger's columns
    input_scale: ir.Value | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """Products can be joined that have the same."""
        node = self.node
        inputs = (0, 2) if node.op_type == "MatMulInteger" else (0,)
        attributes = {name: attribute.value for name, attribute in node.attributes.items() if name != "N"}
        return (
            node.op_type,
            *(id(node.inputs[index]) for index in inputs),
            id(self.input_scale),
            len(node.inputs),
            self.bias is None,
            *sorted(attributes.items()),
        )


def join_products(graph: ir.Graph) -> None:
    groups: dict[tuple[object, ...], list[_Product]] = {}
    for node in graph:
        product = _integer(node) if node.op_type == "MatMulInteger" else _blocks(node)
        if product is not None and _few_rows(product.result):
            groups.setdefault(product.key, []).append(product)
    for group in groups.values():
        if len(group) > 1:
            _join(graph, group)


def _few_rows(result: ir.Value) -> bool:
    rows = result.shape[-2] if result.shape is not None and len(result.shape) > 1 else None
    return not isinstance(rows, int) or rows <= MANY_ROWS


def _blocks(node: ir.Node) -> _Product | None:
    """MatMulNBits: weights [N, blocks, bytes], scales [N, blocks] and, if any, zero points [N, ...]."""
    if node.op_type != "MatMulNBits" or any(constant(value) is None for value in node.inputs[1:]):
        return None
    return _with_bias(node, node.outputs[0], int(node.attributes["N"].value))


def _integer(node: ir.Node) -> _Product | None:
    """MatMulInteger of weights [K, N], cast, and multiplied by the scales of input and columns."""
    weights = constant(node.inputs[1])
    cast = only_user(node.outputs[0], "Cast")
    multiply = only_user(cast.outputs[0], "Mul") if cast is not None else None
    scales = producer(multiply.inputs[1], "Mul") if multiply is not None else None
    if weights is None or weights.ndim != 2 or multiply is None or scales is None or constant(scales.inputs[1]) is None:
        return None
    return _with_bias(node, multiply.outputs[0], weights.shape[1], scales.inputs[1], scales.inputs[0])


def _with_bias(
    node: ir.Node,
    product: ir.Value,
    columns: int,
    scales: ir.Value | None = None,
    input_scale: ir.Value | None = None,
) -> _Product:
    if add := only_user(product, "Add"):
        bias = next((value for value in add.inputs if value is not product), None)
        array = constant(bias)
        if array is not None and array.shape == (columns,):
            return _Product(node, add.outputs[0], columns, bias, scales, input_scale)
    return _Product(node, product, columns, None, scales, input_scale)


def _join(graph: ir.Graph, group: Sequence[_Product]) -> None:
    first = group[0]
    name = "+".join(str(product.node.name) for product in group)

    def together(values: Sequence[ir.Value | None], what: str, axis: int) -> ir.Value:
        arrays = [constant(value) for value in values]
        joined = np.concatenate([array for array in arrays if array is not None], axis)
        return new_constant(graph, f"{name}.{what}", joined)

    def inputs_together(index: int, axis: int) -> ir.Value | None:
        values = [product.node.inputs[index] for product in group]
        return None if values[0] is None else together(values, f"weight_{index}", axis)

    node = first.node
    if node.op_type == "MatMulInteger":
        weights, zeros = inputs_together(1, 1), inputs_together(3, 0) if len(node.inputs) > 3 else None
        inputs = [node.inputs[0], weights, node.inputs[2], zeros]
        sums = new_node("MatMulInteger", inputs, [f"{name}.sums"])
        cast = new_node("Cast", sums.outputs, [f"{name}.cast"], to=ir.DataType.FLOAT.value)
        scales = together([product.scales for product in group], "weight_scale", 0)
        scale = new_node("Mul", [first.input_scale, scales], [f"{name}.scale"])
        nodes = [sums, cast, scale, new_node("Mul", [cast.outputs[0], scale.outputs[0]], [f"{name}.product"])]
    else:
        inputs = [node.inputs[0], *(inputs_together(index, 0) for index in range(1, len(node.inputs)))]
        attributes = {key: attribute.value for key, attribute in node.attributes.items()}
        attributes["N"] = sum(product.columns for product in group)
        nodes = [new_node("MatMulNBits", inputs, [f"{name}.product"], **attributes)]
        nodes[0].domain = node.domain
    if first.bias is not None:
        bias = together([product.bias for product in group], "bias", 0)
        nodes.append(new_node("Add", [nodes[-1].outputs[0], bias], [f"{name}.sum"]))
    sizes = new_constant(graph, f"{name}.columns", np.array([product.columns for product in group], np.int64))
    outputs = [f"{name}.{index}" for index in range(len(group))]
    nodes.append(new_node("Split", [nodes[-1].outputs[0], sizes], outputs, axis=-1))
    graph.insert_before(node, nodes)
    for product, output in zip(group, nodes[-1].outputs):
        take_place(graph, product.result, output)
