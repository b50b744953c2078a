"""INT8 for a CPU, activations scaled call by call: uint8 activations, int8 weights with a scale per column."""

from __future__ import annotations

import onnx
from onnxruntime.quantization import QuantizationMode, QuantType
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer

from catp.calibration.precision.formats.base import single_layer
from catp.calibration.precision.graphs.layers import Layer


def dynamic_int8(layer: Layer, reduce_range: bool) -> onnx.GraphProto:
    """DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses into its integer kernels.

    Library: onnxruntime.quantization's ONNXQuantizer, as quantize_dynamic uses it.

    Args:
        reduce_range: weights of 7 bits, so that the sums of 16-bit instructions can't overflow: for CPUs without VNNI.
    """
    quantizer = ONNXQuantizer(
        single_layer(layer),
        True,  # per channel
        reduce_range,
        QuantizationMode.IntegerOps,
        False,  # static
        QuantType.QInt8,
        QuantType.QUInt8,
        None,
        [],
        [],
        ["MatMul"],
        {"MatMulConstBOnly": True},
    )
    quantizer.quantize_model()
    return quantizer.model.model.graph
