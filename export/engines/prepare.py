"""Preparation of a graph's ONNX model for TensorRT."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import numpy_helper

from catp.runtime.bundle.plans import fixed_numbers

_REFUSED = {("Attention", "softmax_precision")}
"""Attributes that TensorRT's parser refuses because its attention has no such choice.

The half-precision graphs ask for a float32 softmax. How near TensorRT's kernels come to it is not assumed:
`make gpu-check` compares them with the CPU provider.
"""


def prepare(model: onnx.ModelProto, fixed: Mapping[str, int]) -> tuple[str, ...]:
    """Fix dimensions and leave out what TensorRT refuses, in place; the attributes left out, for the sidecar."""
    fix_dimensions(model, fixed)
    return leave_out_refused(model)


def fix_dimensions(model: onnx.ModelProto, fixed: Mapping[str, int]) -> None:
    """Make free dimensions of a model numbers, in place; an input of a dimension's name becomes a constant.

    The KV cache's length must be a number for TensorRT, and is free in the file because ONNX Runtime's cost follows it.
    """
    graph = model.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param in fixed:
                dimension.dim_value = fixed[dimension.dim_param]
    for value in [value for value in graph.input if fixed_numbers(value.name, fixed)]:
        graph.input.remove(value)
        numbers = np.array(fixed_numbers(value.name, fixed), np.int64)
        graph.initializer.append(numpy_helper.from_array(numbers, value.name))


def leave_out_refused(model: onnx.ModelProto) -> tuple[str, ...]:
    """Remove attributes that TensorRT refuses to be asked for, in place; which ones there were, for the sidecar."""
    left_out = set()
    for node in model.graph.node:
        for attribute in [a for a in node.attribute if (node.op_type, a.name) in _REFUSED]:
            node.attribute.remove(attribute)
            left_out.add(f"{node.op_type}.{attribute.name}")
    return tuple(sorted(left_out))
