"""The parts that formats share: a layer as a model of its own, which libraries take."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper

from catp.calibration.precision.graphs.layers import Layer


@dataclass(frozen=True)
class Range:
    """The range of a layer's input in calibration.

    Raises:
        ValueError: an end is no number or infinite, or they are the wrong way round.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"no range: {self.low} to {self.high}")

    @property
    def largest(self) -> float:
        """Absolute value."""
        return max(abs(self.low), abs(self.high))


def single_layer(layer: Layer) -> onnx.ModelProto:
    """x [..., K] -> x W, under the names that the tensors have in the graph or will get there."""
    weight = layer.weight()
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    product = f"{layer.node}.product"
    graph = helper.make_graph(
        [helper.make_node("MatMul", [layer.input, f"{layer.node}.weight"], [product], name=layer.node)],
        layer.node,
        [helper.make_tensor_value_info(layer.input, kind, ["rows", layer.depth])],
        [helper.make_tensor_value_info(product, kind, ["rows", weight.shape[1]])],
        [numpy_helper.from_array(weight, f"{layer.node}.weight")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", layer.opset)], ir_version=11)


def initializer_bytes(fragment: onnx.GraphProto) -> int:
    """Bytes of its weights, scales and zero points."""
    return sum(_nbytes(tensor) for tensor in fragment.initializer)


def _nbytes(tensor: onnx.TensorProto) -> int:
    if tensor.raw_data:
        return len(tensor.raw_data)
    elements = int(np.prod(tensor.dims))
    if tensor.data_type in (onnx.TensorProto.INT4, onnx.TensorProto.UINT4):
        return elements // 2
    return elements * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
