"""INT4 weights in blocks that share a scale; activations stay in floating point."""

from __future__ import annotations

import logging

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from catp.calibration.precision.formats.base import LayerFormat, Options, Range, single_layer
from catp.calibration.precision.formats.steps import step_size
from catp.calibration.precision.graphs.layers import Layer

logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)

_INT8_SUMS = 4
"""MatMulNBits's accuracy level: activations become int8 block by block, inside the kernel."""


def int4(layer: Layer, seen: Range | None, options: Options) -> onnx.GraphProto:
    """One MatMulNBits for ONNX Runtime on a CPU; for TensorRT a DequantizeLinear of symmetric int4 before the MatMul.

    Library: onnxruntime.quantization's MatMulNBitsQuantizer, but for blocks of the smallest numbers: it stores them
    by scales that the graph's type then rounds, or has not.
    """
    for_cpu = options.purpose == "cpu"
    quantizer = MatMulNBitsQuantizer(
        single_layer(layer),
        bits=4,
        block_size=options.block_size,
        is_symmetric=not for_cpu,
        accuracy_level=_INT8_SUMS if for_cpu else None,
        quant_format=QuantFormat.QOperator if for_cpu else QuantFormat.QDQ,
    )
    quantizer.process()
    graph: onnx.GraphProto = quantizer.model.model.graph
    weights, scales, *_ = graph.initializer
    if for_cpu:
        _leave_out_small_blocks(scales)
    else:
        _store_small_blocks(weights, scales, layer.weight(), options.block_size)
    return graph


def _leave_out_small_blocks(scales: onnx.TensorProto) -> None:
    """Scales below float32's normal numbers become 0: what was stored by them is noise."""
    sizes = numpy_helper.to_array(scales)
    small = np.abs(sizes) < np.finfo(sizes.dtype).tiny
    if small.any():
        scales.CopyFrom(numpy_helper.from_array(np.where(small, sizes.dtype.type(0), sizes), scales.name))


def _store_small_blocks(
    weights: onnx.TensorProto, scales: onnx.TensorProto, weight: np.ndarray, block_size: int
) -> None:
    """Blocks with scales below the type's normal numbers are stored anew, in steps that it has.

    As in the other blocks, the largest number becomes -8, whatever its sign.

    Args:
        weights, scales: [K, N] and [blocks, N] of the quantised layer.
        weight: [K, N] in floating point.
    """
    sizes = numpy_helper.to_array(scales)
    small = np.abs(sizes) < np.finfo(sizes.dtype).tiny
    if small.any():
        starts = np.arange(0, len(weight), block_size)
        low, high = np.minimum.reduceat(weight, starts, axis=0), np.maximum.reduceat(weight, starts, axis=0)
        anew = step_size(np.maximum(-low, high), 8, weight.dtype)
        sizes = np.where(small, np.where(high > -low, -anew, anew), sizes)
        small, each = (np.repeat(array, block_size, axis=0)[: len(weight)] for array in (small, sizes))
        stored = numpy_helper.to_array(weights)
        steps = np.clip(np.rint(weight / each), -8, 7).astype(stored.dtype)
        weights.CopyFrom(numpy_helper.from_array(np.where(small, steps, stored), weights.name))
        scales.CopyFrom(numpy_helper.from_array(sizes, scales.name))


INT4 = LayerFormat("float", int4, in_blocks=True)
