"""The interface of a format, and what formats share: a layer as a model of its own, which libraries take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from catp.calibration.precision.graphs.layers import Layer
from catp.runtime.bundle.manifest import Purpose

Activations = Literal["static", "dynamic", "float"]
"""Scaled by ranges from calibration, call by call, or not quantised."""

BLOCK_SIZE = 128


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


@dataclass(frozen=True)
class Options:
    """Settings of a format.

    Args:
        block_size: weights along a column that share a scale, in formats with blocks.
        reduce_range: weights of 7 bits, so that the sums of 16-bit instructions can't overflow: for CPUs without VNNI.
    """

    purpose: Purpose
    block_size: int = BLOCK_SIZE
    reduce_range: bool = False


@dataclass(frozen=True)
class LayerFormat:
    """One way to quantise the product of activations [..., K] and a weight [K, N].

    Args:
        quantise: makes the graph that takes the layer's place; the range is that of its input, None unless activations
            are static.
        refused: runtimes that can't compute it: why, and what to give.
        in_blocks: weights share scales in blocks, which TensorRT takes only whole.
    """

    activations: Activations
    quantise: Callable[[Layer, Range | None, Options], onnx.GraphProto]
    refused: Mapping[Purpose, str] = field(default_factory=dict)
    in_blocks: bool = False


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
