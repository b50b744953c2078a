"""Comparisons that are won, counted by an integer product instead of a sum of numbers made of them.

A comparison's result is one byte; as a number to be added up it is four. The vote of a Q-Former of 12 layers takes
1.6 ms instead of 2.3. Not in the exported graph, because TensorRT takes no uint8 between operators.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from catp.calibration.precision.graphs.nodes import constant, new_constant, new_node, number, producer, take_place


def count_in_integers(graph: ir.Graph) -> None:
    for node in list(graph):
        if node.op_type == "ReduceSum":
            _exchange(graph, node)


def _exchange(graph: ir.Graph, total: ir.Node) -> None:
    cast = producer(total.inputs[0], "Cast")
    compared = producer(cast.inputs[0], "Greater") if cast is not None else None
    axes = constant(total.inputs[1]) if len(total.inputs) > 1 else None
    if cast is None or compared is None or axes is None or axes.size != 1 or number(total, "keepdims", 1) != 0:
        return
    won = compared.outputs[0]
    if won.shape is None or axes.item() not in (-1, len(won.shape) - 1) or not isinstance(won.shape[-1], int):
        return
    columns = won.shape[-1]
    name = total.outputs[0].name
    ones = new_constant(graph, f"ones.{columns}", np.ones((columns, 1), np.int8))
    last = new_constant(graph, "last_axis", np.array([-1], np.int64))
    nodes = [new_node("Cast", [won], [f"{name}.bytes"], to=ir.DataType.UINT8.value)]
    for op_type, other in (("MatMulInteger", ones), ("Squeeze", last)):
        nodes.append(new_node(op_type, [nodes[-1].outputs[0], other], [f"{name}.{op_type}"]))
    kind = int(number(cast, "to", ir.DataType.FLOAT.value))  # votes are float; encoders count tokens in int64
    nodes.append(new_node("Cast", nodes[-1].outputs, [f"{name}.count"], to=kind))
    graph.insert_before(total, nodes)
    take_place(graph, total.outputs[0], nodes[-1].outputs[0])
