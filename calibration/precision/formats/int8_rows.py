"""INT8 for tables of which a few rows are read (word embeddings, positions): a scale for each row."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from catp.calibration.precision.formats.steps import step_size
from catp.calibration.precision.graphs.layers import Layer

LARGEST = 127


def int8_rows(table: Layer) -> onnx.GraphProto:
    """Gather the rows and their scales, then multiply: the table is never restored as a whole.

    In standard operators, for ONNX Runtime; nothing is multiplied in integers, so there is no kernel to find.
    """
    weight = table.weight()
    scale = step_size(np.abs(weight).max(axis=1, keepdims=True), LARGEST, weight.dtype)
    stored = np.clip(np.rint(weight / scale), -LARGEST, LARGEST).astype(np.int8)
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    name = table.node
    product = f"{name}.product"
    return helper.make_graph(
        [
            _node("Gather", [f"{name}.int8", table.input], f"{name}.rows"),
            helper.make_node("Cast", [f"{name}.rows"], [f"{name}.steps"], name=f"{name}.steps", to=kind),
            _node("Gather", [f"{name}.scale", table.input], f"{name}.row_scales"),
            _node("Mul", [f"{name}.steps", f"{name}.row_scales"], product),
        ],
        name,
        [helper.make_tensor_value_info(table.input, onnx.TensorProto.INT64, ["rows"])],
        [helper.make_tensor_value_info(product, kind, ["rows", weight.shape[1]])],
        [
            numpy_helper.from_array(stored, f"{name}.int8"),
            numpy_helper.from_array(scale, f"{name}.scale"),
        ],
    )


def _node(operator: str, inputs: list[str], output: str) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], name=output)
