"""INT4 weights in blocks that share a scale; activations stay in floating point."""

from __future__ import annotations

import logging

import onnx
from onnxruntime.quantization import QuantFormat
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from catp.calibration.precision.formats.base import single_layer
from catp.calibration.precision.layers import Layer
from catp.runtime.bundle.manifest import Purpose

logging.getLogger("onnxruntime.quantization.matmul_nbits_quantizer").setLevel(logging.WARNING)

_INT8_SUMS = 4
"""MatMulNBits's accuracy level: activations become int8 block by block, inside the kernel."""


def int4(layer: Layer, block_size: int, purpose: Purpose) -> onnx.GraphProto:
    """One MatMulNBits for ONNX Runtime on a CPU; for TensorRT a DequantizeLinear of symmetric int4 before the MatMul.

    Library: onnxruntime.quantization's MatMulNBitsQuantizer.

    Args:
        block_size: weights along a column that share a scale.
    """
    for_cpu = purpose == "cpu"
    quantizer = MatMulNBitsQuantizer(
        single_layer(layer),
        bits=4,
        block_size=block_size,
        is_symmetric=not for_cpu,
        accuracy_level=_INT8_SUMS if for_cpu else None,
        quant_format=QuantFormat.QOperator if for_cpu else QuantFormat.QDQ,
    )
    quantizer.process()
    return quantizer.model.model.graph
