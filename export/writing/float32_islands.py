"""Parts that a half-precision graph computes in float32 all the same, because rounding would break it."""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir


def float32_islands(model: ir.Model) -> tuple[str, ...]:
    """For people, such as "25 LayerNormalization statistics", in the order of their kinds' names.

    ONNX gives LayerNormalization's `stash_type` and Attention's `softmax_precision` as the type of what they compute
    inside; every other operator computes in the type of its result.
    """
    found: Counter[str] = Counter()
    for node in model.graph:
        output = node.outputs[0]
        if node.op_type == "Attention" and _attribute(node, "softmax_precision") == ir.DataType.FLOAT:
            found["Attention softmax"] += 1
        elif node.op_type == "LayerNormalization" and output.dtype != ir.DataType.FLOAT:
            if _attribute(node, "stash_type", int(ir.DataType.FLOAT)) == ir.DataType.FLOAT:
                found["LayerNormalization statistics"] += 1
        elif output.dtype == ir.DataType.FLOAT and node.op_type != "Cast":
            found[node.op_type] += 1
    return tuple(f"{count} {kind}" for kind, count in sorted(found.items()))


def _attribute(node: ir.Node, name: str, default: int | None = None) -> int | None:
    attribute = node.attributes.get(name)
    return default if attribute is None else int(attribute.value)
