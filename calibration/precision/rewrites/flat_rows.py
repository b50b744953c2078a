"""Feed-forward layers that flatten a batch's rows and give them their shape back (OPT): they need neither.

Nothing is copied for a new shape, but each takes a microsecond or two: 60 of a decode step's 1,900 in 12 layers.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from catp.calibration.precision.graphs.nodes import constant, take_place

_ROW_BY_ROW = {
    "Add", "Cast", "DynamicQuantizeLinear", "Gelu", "LayerNormalization", "MatMul", "MatMulInteger", "MatMulNBits",
    "Mul", "Relu", "Sigmoid",
}  # fmt: skip
"""Operators that compute the same of [B, S, D] as of [B x S, D], if whatever else they read is constant."""


def leave_rows_as_they_are(graph: ir.Graph) -> None:
    for node in list(graph):
        rows = node.inputs[0] if node.op_type == "Reshape" and node.outputs[0].uses() else None
        if rows is None or not _flattens(node) or rows.shape is None:
            continue
        region = list(_region(node.outputs[0]))
        ends = [usage.node for value in region for usage in value.uses() if usage.node.op_type == "Reshape"]
        if region and ends and all(_restores(end, rows) for end in ends):
            for value in region:
                if value.shape is not None and len(value.shape) == 2:
                    value.shape = ir.Shape([*rows.shape[:2], value.shape[1]])
            ir.convenience.replace_all_uses_with(node.outputs[0], rows)
            graph.remove(node, safe=True)
            for end in ends:
                whole = end.inputs[0]
                assert whole is not None
                take_place(graph, end.outputs[0], whole)


def _flattens(node: ir.Node) -> bool:
    shape, before = constant(node.inputs[1]), node.inputs[0]
    if shape is None or before is None or before.shape is None or len(before.shape) != 3:
        return False
    return shape.tolist() == [-1, before.shape[2]]


def _restores(node: ir.Node, rows: ir.Value) -> bool:
    """Whether a Reshape gives the rows the shape that they had."""
    after = node.outputs[0]
    return after.shape is not None and rows.shape is not None and list(after.shape) == list(rows.shape)


def _region(flat: ir.Value) -> Iterator[ir.Value]:
    """Tensors computed row by row of `flat`, itself included; none where something else reads one of them."""
    found = {flat: None}
    waiting = [flat]
    while waiting:
        for usage in waiting.pop().uses():
            node = usage.node
            if node.op_type == "Reshape" and not usage.idx:
                continue
            if node.op_type not in _ROW_BY_ROW:
                return
            new = [value for value in node.outputs if value not in found]
            found |= dict.fromkeys(new)
            waiting += new
    inside = {usage.node for value in found for usage in value.uses() if usage.node.op_type in _ROW_BY_ROW}
    for other in (other for node in inside for other in node.inputs if other is not None):
        if other not in found and constant(other) is None:
            return
    if not any(value.is_graph_output() for value in found):
        yield from found
