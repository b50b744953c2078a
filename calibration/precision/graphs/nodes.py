"""Reading a graph's nodes, and exchanging them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes a value, if it is of that type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def only_user(value: ir.Value, op_type: str) -> ir.Node | None:
    """The one node that reads a value, if there is no other, and it is of that type."""
    users = [usage.node for usage in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op_type and not value.is_graph_output() else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """The value that a tensor has at every call, if it is known."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def number(node: ir.Node, name: str, default: float) -> float:
    """An attribute."""
    attribute = node.attributes.get(name)
    return default if attribute is None else float(attribute.value)


def permutes(node: ir.Node | None, *axes: int) -> bool:
    """Whether it is a Transpose to that order."""
    return node is not None and node.op_type == "Transpose" and tuple(node.attributes["perm"].value) == axes


def with_bias(product: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """A product's sum with its constant bias, and the bias, where nothing else reads the product; else itself."""
    if add := only_user(product, "Add"):
        bias = next((value for value in add.inputs if value is not product), None)
        array = constant(bias)
        if array is not None and array.ndim == 1:
            return add.outputs[0], bias
    return product, None


def new_node(op_type: str, inputs: Sequence[ir.Value | None], outputs: Sequence[str], **attributes: object) -> ir.Node:
    """A node, called like its first output."""
    return ir.node(
        op_type,
        inputs,
        {name: value for name, value in attributes.items() if value is not None},  # type: ignore[misc]
        outputs=[ir.Value(name=name) for name in outputs],
        name=outputs[0],
    )


def new_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer; the one there is where it was made before."""
    if name not in graph.initializers:
        graph.register_initializer(ir.Value(name=name, const_value=ir.tensor(array, name=name)))
    return graph.initializers[name]


def take_place(graph: ir.Graph, old: ir.Value, new: ir.Value) -> None:
    """`new` is read, by the old name, wherever `old` was; nodes that nothing reads any more are removed."""
    name, shape, kind = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    remove_unread(graph, old.producer())
    new.name, new.shape, new.type = name, shape, kind


def remove_unread(graph: ir.Graph, node: ir.Node | None) -> None:
    """The node and what only it read, weights included."""
    if node is None or any(value.uses() or value.is_graph_output() for value in node.outputs):
        return
    inputs = [value for value in dict.fromkeys(node.inputs) if value is not None]
    graph.remove(node, safe=True)
    for value in inputs:
        if value.is_initializer() and not value.uses() and not value.is_graph_output():
            del graph.initializers[str(value.name)]
        remove_unread(graph, value.producer())
