"""A floating-point graph, with some of its layers exchanged for quantised ones or with their inputs opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx
import onnx_ir as ir

from catp.calibration.precision.graphs.layers import Layer, find_layers
from catp.runtime.errors import UsageError

TAP = "tap:"
"""Before the name of a tensor, the name of the output that lays it open."""


class FloatGraph:
    """One graph of a bundle; its weights stay on disk until they are written elsewhere.

    Args:
        name: of the graph.
        path: its ONNX file; weights lie beside it.

    Raises:
        UsageError: it is quantised already, has no layers, or its weights can't be read safely.
    """

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.folder = path.parent
        for weights in path.parent.glob(f"{path.stem}.onnx_data"):
            if weights.stat().st_nlink > 1:
                raise UsageError(
                    f"{weights}: it has a second name (a hard link), which ONNX's tools refuse for weights; copy the "
                    "bundle, and give the copy"
                )
        self._model = ir.load(path)
        self.layers = find_layers(self._model, name)

    def exchanged(self, fragments: Mapping[str, onnx.GraphProto]) -> ir.Model:
        """The graph with layers, by name, computed by fragments.

        A fragment reads the layer's input under its own name and outputs the product alone. Nodes that
        several fragments have in common, because their layers read the same tensor, become one.
        """
        model = self._model.clone()
        graph = model.graph
        nodes = {node.name: node for node in graph}
        known: dict[str, ir.Value] = {str(value.name): value for value in graph.inputs}
        known |= {str(value.name): value for node in graph for value in node.outputs}
        layers = {layer.name: layer for layer in self.layers}
        for name, fragment in fragments.items():
            node = nodes[layers[name].node]
            product = _insert(graph, node, fragment, known)
            _replace(graph, node, product)
        _drop_unused(graph)
        model.opset_imports.update(dict.fromkeys({node.domain for node in graph} - {"", "ai.onnx"}, 1))
        return model

    def tapped(self, layers: Iterable[Layer]) -> ir.Model:
        """The graph with the inputs of layers as further outputs, called TAP and the tensor's name."""
        model = self._model.clone()
        graph = model.graph
        values = {str(value.name): value for value in graph.inputs}
        values |= {str(value.name): value for node in graph for value in node.outputs}
        for tensor in dict.fromkeys(layer.input for layer in layers):
            # By a node of its own: what is an input of the graph can't be its output as well.
            output = ir.Value(name=f"{TAP}{tensor}", type=values[tensor].type)
            graph.append(ir.Node("", "Identity", [values[tensor]], outputs=[output], name=f"{TAP}{tensor}"))
            graph.outputs.append(output)
        return model


def serialized(model: ir.Model) -> bytes:
    """The model as bytes; weights that lie on disk are named, not copied."""
    return ir.serde.serialize_model(model).SerializeToString()


def _insert(graph: ir.Graph, node: ir.Node, fragment: onnx.GraphProto, known: dict[str, ir.Value]) -> ir.Value:
    """Put a fragment's nodes before `node`; the product."""
    for tensor in fragment.initializer:
        if tensor.name not in known:
            value = ir.Value(name=tensor.name, const_value=ir.serde.deserialize_tensor(tensor))
            graph.register_initializer(value)
            known[tensor.name] = value
    # A library may list nodes in any order: take those first whose inputs are there.
    waiting = [proto for proto in fragment.node if proto.output[0] not in known]
    while waiting:
        ready = [proto for proto in waiting if all(name in known for name in proto.input if name)]
        assert ready, f"{node.name}: its fragment reads what nothing computes"
        for proto in ready:
            waiting.remove(proto)
            new = ir.Node(
                proto.domain,
                proto.op_type,
                [known[name] if name else None for name in proto.input],
                [ir.serde.deserialize_attribute(attribute) for attribute in proto.attribute],
                outputs=[ir.Value(name=name) for name in proto.output],
                name=proto.name,
                metadata_props=node.metadata_props,  # the module that it came from
            )
            graph.insert_before(node, new)
            known |= {str(value.name): value for value in new.outputs}
    return known[fragment.output[0].name]


def _replace(graph: ir.Graph, node: ir.Node, product: ir.Value) -> None:
    """Let `product`, with the node's bias where it has one, stand for the node's output."""
    old = node.outputs[0]
    new = product
    if node.op_type == "Gemm" and len(node.inputs) > 2 and node.inputs[2] is not None:
        add = ir.Node("", "Add", [product, node.inputs[2]], outputs=[ir.Value()], name=f"{node.name}.bias")
        graph.insert_before(node, add)
        new = add.outputs[0]
    name, shape, kind = old.name, old.shape, old.type
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name, new.shape, new.type = name, shape, kind


def _drop_unused(graph: ir.Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
