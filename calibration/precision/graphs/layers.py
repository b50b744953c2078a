"""Layers: what calibration quantises in a graph, products with a constant matrix and tables of which rows are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from shlex import quote
from typing import Any

import numpy as np
import onnx_ir as ir

from catp.calibration.precision.graphs.nodes import number
from catp.export.graphs.scopes import SCOPES, module_of
from catp.runtime.errors import UsageError

_QUANTISED = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "MatMulNBits"}


@dataclass(frozen=True)
class Layer:
    """One product y = x W of a graph, with a bias or without, which stays as it is; or one table y = W[x]."""

    name: str  # of the module it came from, such as "vision_model.encoder.layers.0.mlp.fc2"
    node: str
    input: str  # tensor x: [..., K] of a product, row numbers of a table
    opset: int  # of the graph
    _weight: Any  # ir tensor [K, N], or [N, K] where it is transposed
    _transposed: bool = False
    is_table: bool = False
    is_output: bool = False  # y is what the graph outputs, as a language model's logits are

    def weight(self) -> np.ndarray:
        """W [K, N], of a table [rows, width]; float32 or float16, read from disk."""
        matrix = self._weight.numpy()
        return np.ascontiguousarray(matrix.T) if self._transposed else matrix

    @property
    def depth(self) -> int:
        """K, the number of terms of each sum."""
        return int(self._weight.shape[1 if self._transposed else 0])

    @property
    def nbytes(self) -> int:
        """Bytes of the weight in floating point."""
        return int(self._weight.nbytes)


def find_layers(model: ir.Model, graph: str) -> tuple[Layer, ...]:
    """The layers of a graph whose input comes from its caller, in the order of the graph; at least one is a product.

    Products of constants alone (queries before they meet the image) are computed when the graph is loaded.

    Args:
        graph: its name, for messages.

    Raises:
        UsageError: the graph is quantised already, or has no such layer.
    """
    found = Counter(node.op_type for node in model.graph)
    weights = [value.const_value for value in model.graph.initializers.values()]
    tables = any(weight is not None and weight.dtype == ir.DataType.INT8 for weight in weights)
    if tables or found.keys() & _QUANTISED:
        raise UsageError(f"{graph}: it is quantised already; give the floating-point bundle that it was made from")
    dependent = set(model.graph.inputs)
    layers = []
    for node in model.graph:
        if any(value in dependent for value in node.inputs):
            dependent.update(node.outputs)
            if layer := _as_layer(node, model.opset_imports[""]):
                layers.append(layer)
    if all(layer.is_table for layer in layers):
        raise UsageError(f"{graph}: it has no product with a constant matrix, so there is nothing to quantise")
    repeated = {name for name, count in Counter(layer.name for layer in layers).items() if count > 1}
    return tuple(
        replace(layer, name=f"{layer.name}:{layer.node}") if layer.name in repeated else layer for layer in layers
    )


def matching(layers: tuple[Layer, ...], patterns: tuple[str, ...], graph: str = "") -> Iterator[Layer]:
    """The layers whose name fits one of the patterns, as shells match file names.

    Args:
        graph: theirs; "GRAPH: LAYER", as reports have it, fits as well.
    """
    for layer in layers:
        names = (layer.name, f"{graph}: {layer.name}")
        if any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns for name in names):
            yield layer


def exclude_options(names: Iterable[str]) -> str:
    """The options of catp-calibrate precision that leave layers of those names in floating point."""
    return " ".join(f"--exclude {quote(name)}" for name in names)


def _as_layer(node: ir.Node, opset: int) -> Layer | None:
    if node.op_type not in ("MatMul", "Gemm", "Gather") or node.domain not in ("", "ai.onnx"):
        return None
    is_table = node.op_type == "Gather" and number(node, "axis", 0) == 0
    x, w = (node.inputs[1], node.inputs[0]) if is_table else (node.inputs[0], node.inputs[1])
    tensor = None if w is None else w.const_value
    if x is None or tensor is None or len(tensor.shape) != 2 or x.const_value is not None:
        return None
    if not tensor.dtype.is_floating_point():
        return None
    # T5's biases of distances: a row for each pair of tokens, of a table far smaller than what is read of it.
    if is_table and x.shape is not None and len(x.shape) > 2:
        return None
    transposed = False
    if node.op_type == "Gemm":
        plain = number(node, "alpha", 1.0) == number(node, "beta", 1.0) == 1 and number(node, "transA", 0) == 0
        if not plain:
            return None
        transposed = bool(number(node, "transB", 0))
    assert node.name is not None and x.name is not None and w is not None
    is_output = node.outputs[0].is_graph_output()
    return Layer(_module(node, w), node.name, x.name, opset, tensor, transposed, is_table, is_output)


def _module(node: ir.Node, weight: ir.Value) -> str:
    """The innermost module that the node came from; where that is not known, the one that its weight belongs to."""
    return module_of(node.metadata_props.get(SCOPES, "")) or str(weight.name).removesuffix(".weight")
