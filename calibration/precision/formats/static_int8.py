"""INT8 with activations scaled by ranges from calibration: a QuantizeLinear and DequantizeLinear pair on each side."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization.calibrate import TensorData
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from catp.calibration.precision.formats.base import LayerFormat, Options, Range, single_layer
from catp.calibration.precision.formats.steps import step_size
from catp.calibration.precision.graphs.layers import Layer


def static_int8(layer: Layer, seen: Range | None, options: Options) -> onnx.GraphProto:
    """int8 weights with a scale per column; activations int8 around 0 for TensorRT, uint8 for ONNX Runtime on a CPU.

    ONNX Runtime is slow at int8 times int8, TensorRT accepts nothing else. The product stays in floating point.

    Library: onnxruntime.quantization's QDQQuantizer, as quantize_static uses it, but for the scales: where one
    underflows, it takes 1 and stores zeros.
    """
    assert seen is not None
    model = single_layer(layer)
    weight = layer.weight()
    symmetric = options.purpose == "tensorrt"
    # QDQQuantizer wants ranges where it is given scales, and does not use them.
    unused = TensorData(lowest=np.zeros((), weight.dtype), highest=np.ones((), weight.dtype))
    ranges = {value.name: unused for value in (*model.graph.input, *model.graph.output)}
    columns = step_size(np.abs(weight).max(axis=0), 64 if options.reduce_range else 127, weight.dtype)
    scales: dict[str, list[dict[str, Any]]] = {
        layer.input: [_activations(seen, weight.dtype, symmetric)],
        f"{layer.node}.weight": [{"axis": 1, "scale": column, "zero_point": 0} for column in columns],
    }
    quantizer = QDQQuantizer(
        model,
        True,  # per channel
        options.reduce_range,
        QuantType.QInt8,
        QuantType.QInt8 if symmetric else QuantType.QUInt8,
        ranges,
        [],
        [],
        ["MatMul"],
        {
            "ActivationSymmetric": symmetric,
            "WeightSymmetric": True,
            "TensorQuantOverrides": scales,
            "OpTypesToExcludeOutputQuantization": ["MatMul"],
        },
    )
    quantizer.quantize_model()
    return quantizer.model.model.graph


def _activations(seen: Range, kind: np.dtype, symmetric: bool) -> dict[str, Any]:
    """Scale and zero point of 255 steps that reach from one end of a range, or 0, to the other."""
    if symmetric:
        return {"scale": step_size(seen.largest, 127, kind), "zero_point": np.array(0, np.int8)}
    low, high = min(seen.low, 0.0), max(seen.high, 0.0)
    scale = step_size(high - low, 255, kind)
    return {"scale": scale, "zero_point": np.array(np.rint(-low / float(scale)), np.uint8)}


STATIC_INT8 = LayerFormat("static", static_int8)
