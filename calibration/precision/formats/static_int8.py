"""INT8 with activations scaled by ranges from calibration: a QuantizeLinear and DequantizeLinear pair on each side."""

from __future__ import annotations

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from catp.calibration.precision.formats.base import Range, single_layer
from catp.calibration.precision.layers import Layer
from catp.runtime.bundle.manifest import Purpose


def static_int8(layer: Layer, seen: Range, purpose: Purpose, reduce_range: bool) -> onnx.GraphProto:
    """int8 weights with a scale per column; activations int8 around 0 for TensorRT, uint8 for ONNX Runtime on a CPU.

    ONNX Runtime is slow at int8 times int8, TensorRT accepts nothing else. The product stays in floating point.

    Library: onnxruntime.quantization's QDQQuantizer, as quantize_static uses it.

    Args:
        reduce_range: weights of 7 bits, for CPUs without VNNI.
    """
    model = single_layer(layer)
    kind = layer.weight().dtype.type
    # QDQQuantizer wants a range for the product as well, and does not use it.
    ranges = {
        value.name: TensorData(lowest=np.array(seen.low, kind), highest=np.array(seen.high, kind))
        for value in (*model.graph.input, *model.graph.output)
    }
    quantizer = QDQQuantizer(
        model,
        True,  # per channel
        reduce_range,
        QuantType.QInt8,
        QuantType.QInt8 if purpose == "tensorrt" else QuantType.QUInt8,
        ranges,
        [],
        [],
        ["MatMul"],
        {
            "ActivationSymmetric": purpose == "tensorrt",
            "WeightSymmetric": True,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )
    quantizer.quantize_model()
    return quantizer.model.model.graph
