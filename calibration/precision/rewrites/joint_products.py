"""INT4 products of one input as one product: queries, keys and values of an attention, gate and rise of an MLP.

A decode step's product takes as long as its weights take to be read, and each has its own start. Where rows are many,
taking the result apart again costs what one product instead of three saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from catp.calibration.precision.graphs.nodes import constant, new_constant, new_node, take_place, with_bias


@dataclass(frozen=True)
class _Product:
    """A MatMulNBits: weights [N, blocks, bytes], scales [N, blocks] and, if any, zero points [N, ...]."""

    node: ir.Node
    result: ir.Value  # with the bias
    bias: ir.Value | None

    @property
    def key(self) -> tuple[object, ...]:
        """Products can be joined that have the same."""
        node = self.node
        attributes = {name: attribute.value for name, attribute in node.attributes.items() if name != "N"}
        return id(node.inputs[0]), len(node.inputs), self.bias is None, *sorted(attributes.items())

    @property
    def columns(self) -> int:
        return int(self.node.attributes["N"].value)


def join_products(graph: ir.Graph) -> None:
    groups: dict[tuple[object, ...], list[_Product]] = {}
    for node in graph:
        if node.op_type == "MatMulNBits":
            product = _Product(node, *with_bias(node.outputs[0]))
            groups.setdefault(product.key, []).append(product)
    for group in groups.values():
        if len(group) > 1:
            _join(graph, group)


def _join(graph: ir.Graph, group: Sequence[_Product]) -> None:
    first = group[0].node
    name = "+".join(str(product.node.name) for product in group)

    def together(values: Sequence[ir.Value | None], what: str) -> ir.Value | None:
        arrays = [array for array in map(constant, values) if array is not None]
        return new_constant(graph, f"{name}.{what}", np.concatenate(arrays)) if arrays else None

    weights = [
        together([product.node.inputs[index] for product in group], f"weight_{index}")
        for index in range(1, len(first.inputs))
    ]
    attributes = {key: attribute.value for key, attribute in first.attributes.items()}
    attributes["N"] = sum(product.columns for product in group)
    nodes = [new_node("MatMulNBits", [first.inputs[0], *weights], [f"{name}.product"], **attributes)]
    nodes[0].domain = first.domain
    if bias := together([product.bias for product in group], "bias"):
        nodes.append(new_node("Add", [nodes[-1].outputs[0], bias], [f"{name}.sum"]))
    sizes = new_constant(graph, f"{name}.columns", np.array([product.columns for product in group], np.int64))
    outputs = [f"{name}.{index}" for index in range(len(group))]
    nodes.append(new_node("Split", [nodes[-1].outputs[0], sizes], outputs, axis=-1))
    graph.insert_before(first, nodes)
    for product, output in zip(group, nodes[-1].outputs):
        take_place(graph, product.result, output)
