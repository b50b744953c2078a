"""An INT8 product whose result is only taken apart (a vision encoder's packed queries, keys and values) as several.

They quantise their input once all the same. Of 257 rows, taking the result apart costs more than three products
instead of one: an encoder of 12 layers of 768 takes 1 ms less of 39.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from catp.calibration.precision.graphs.nodes import (
    constant,
    new_constant,
    new_node,
    number,
    only_user,
    producer,
    remove_unread,
    with_bias,
)


def part_products(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type == "MatMulInteger":
            _part(graph, node)


def _part(graph: ir.Graph, node: ir.Node) -> None:
    """`node`: of weights [K, N]; its sums are cast, and multiplied by the scales of input and columns."""
    cast = only_user(node.outputs[0], "Cast")
    multiply = only_user(cast.outputs[0], "Mul") if cast is not None else None
    scales = producer(multiply.inputs[1], "Mul") if multiply is not None else None
    if multiply is None or scales is None or len(node.inputs) != 4:
        return
    result, bias = with_bias(multiply.outputs[0])
    split = only_user(result, "Split")
    weights, zeros, factors = (constant(value) for value in (node.inputs[1], node.inputs[3], scales.inputs[1]))
    if split is None or number(split, "axis", 0) not in (-1, 2) or weights is None or zeros is None or factors is None:
        return
    parts = len(split.outputs)
    if len(split.inputs) > 1 or zeros.ndim != 1 or factors.ndim != 1 or weights.shape[1] % parts:
        return
    offsets = constant(bias)
    shares: Sequence[Sequence[np.ndarray | None]] = [
        [None] * parts if array is None else np.split(array, parts, axis=-1)
        for array in (weights, zeros, factors, offsets)
    ]
    for index, (output, weight, zero, factor, offset) in enumerate(zip(list(split.outputs), *shares)):
        name = f"{node.name}.{index}"
        assert weight is not None and zero is not None and factor is not None

        def stored(array: np.ndarray, what: str, name: str = name) -> ir.Value:
            return new_constant(graph, f"{name}.{what}", np.ascontiguousarray(array))

        inputs = [node.inputs[0], stored(weight, "weight_quantized"), node.inputs[2], stored(zero, "weight_zero_point")]
        sums = new_node("MatMulInteger", inputs, [f"{name}.sums"])
        new_cast = new_node("Cast", sums.outputs, [f"{name}.cast"], to=ir.DataType.FLOAT.value)
        scale = new_node("Mul", [scales.inputs[0], stored(factor, "weight_scale")], [f"{name}.scale"])
        nodes = [sums, new_cast, scale]
        nodes.append(new_node("Mul", [new_cast.outputs[0], scale.outputs[0]], [f"{name}.product"]))
        if offset is not None:
            nodes.append(new_node("Add", [nodes[-1].outputs[0], stored(offset, "bias")], [f"{name}.sum"]))
        graph.insert_before(split, nodes)
        ir.convenience.replace_all_uses_with(output, nodes[-1].outputs[0])
        nodes[-1].outputs[0].shape, nodes[-1].outputs[0].type = output.shape, output.type
    remove_unread(graph, split)
