"""INT8 for a CPU, activations scaled call by call: uint8 activations, int8 weights with a scale per column."""

from __future__ import annotations

import onnx
from onnxruntime.quantization import QuantizationMode, QuantType
from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer

from catp.calibration.precision.formats.base import LayerFormat, Options, Range, single_layer
from catp.calibration.precision.graphs.layers import Layer


def dynamic_int8(layer: Layer, seen: Range | None, options: Options) -> onnx.GraphProto:
    """DynamicQuantizeLinear and MatMulInteger, which ONNX Runtime fuses into its integer kernels.

    Library: onnxruntime.quantization's ONNXQuantizer, as quantize_dynamic uses it.
    """
    quantizer = ONNXQuantizer(
        single_layer(layer),
        True,  # per channel
        options.reduce_range,
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


DYNAMIC_INT8 = LayerFormat(
    "dynamic", dynamic_int8, refused={"tensorrt": "it takes scales known beforehand; give static"}
)
