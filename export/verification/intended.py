"""Results that may be infinite: masks, and what only operators read that give the right number for infinity."""

from __future__ import annotations

import onnx

_SINKS = {"Softmax", "Tanh", "Sigmoid", "Erf", "Clip", "Min", "Max", "IsInf", "IsNaN"}
"""They weigh, saturate or limit: of infinity they make what they should of a number beyond the range, or no number
where a graph is wrong. A result of theirs is watched in turn."""

_ON_THE_WAY = {"Where", "Add", "Mul", "Pow", "Cast", "Expand", "Reshape", "Unsqueeze", "Slice"}
"""Operators that add masks, T5's power of three, and those that move either to its reader: no product of matrices."""

_MASK = 3  # of Attention's inputs


def reads_infinity(graph: onnx.GraphProto) -> set[str]:
    """The tensors that may hold an infinity, because every reader is meant to see it."""
    readers: dict[str, list[tuple[onnx.NodeProto, int]]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            readers.setdefault(name, []).append((node, index))
    read_outside = {value.name for value in graph.output}
    found: set[str] = set()
    for node in reversed(graph.node):  # readers come first
        if node.op_type in _ON_THE_WAY and not read_outside.intersection(node.output):
            taken = [_takes(reader, index, found) for name in node.output for reader, index in readers.get(name, ())]
            if taken and all(taken):
                found.update(node.output)
    return found


def _takes(node: onnx.NodeProto, index: int, found: set[str]) -> bool:
    return node.op_type in _SINKS or (node.op_type == "Attention" and index == _MASK) or node.output[0] in found
