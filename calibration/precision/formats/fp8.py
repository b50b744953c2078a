"""FP8 (E4M3) weights and activations, scaled to its largest number."""

from __future__ import annotations

import numpy as np
import onnx
from ml_dtypes import finfo, float8_e4m3fn
from onnx import helper, numpy_helper

from catp.calibration.precision.formats.base import LayerFormat, Options, Range, single_layer
from catp.calibration.precision.formats.steps import step_size
from catp.calibration.precision.graphs.layers import Layer

LARGEST = float(finfo(float8_e4m3fn).max)  # 448


def fp8(layer: Layer, seen: Range | None, options: Options) -> onnx.GraphProto:
    """A QuantizeLinear and DequantizeLinear pair on the activations, a DequantizeLinear on weights stored as FP8.

    onnxruntime.quantization fits FP8 scales to a normal distribution; TensorRT's documentation and nvidia-modelopt
    scale the largest absolute value to 448, and so does this.
    """
    assert seen is not None
    model = single_layer(layer)
    weight = layer.weight()
    x, w = f"{layer.input}_fp8", f"{layer.node}.weight_fp8"
    scale = step_size(np.abs(weight).max(axis=0), LARGEST, weight.dtype)
    stored = np.clip(weight / scale, -LARGEST, LARGEST).astype(float8_e4m3fn)
    tensors = {
        f"{x}_scale": step_size(seen.largest, LARGEST, weight.dtype),
        f"{x}_zero": np.zeros((), float8_e4m3fn),
        w: stored,
        f"{w}_scale": scale,
        f"{w}_zero": np.zeros(weight.shape[1], float8_e4m3fn),
    }
    graph = model.graph
    product = graph.output[0].name
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(numpy_helper.from_array(tensor, name) for name, tensor in tensors.items())
    graph.node.extend(
        [
            _node("QuantizeLinear", [layer.input, f"{x}_scale", f"{x}_zero"], x),
            _node("DequantizeLinear", [x, f"{x}_scale", f"{x}_zero"], f"{x}_restored"),
            _node("DequantizeLinear", [w, f"{w}_scale", f"{w}_zero"], f"{w}_restored", axis=1),
            _node("MatMul", [f"{x}_restored", f"{w}_restored"], product),
        ]
    )
    return graph


def _node(operator: str, inputs: list[str], output: str, axis: int | None = None) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=output, axis=axis)


FP8 = LayerFormat(
    "static", fp8, refused={"cpu": "ONNX Runtime has no FP8 kernels for CPUs; give int8, or --for tensorrt"}
)
