"""Forms of a calibrated graph that ONNX Runtime's CPU kernels compute faster, with the same results. One file each."""

from __future__ import annotations

import onnx_ir as ir

from catp.calibration.precision.rewrites.cached_attention import attend_over_cache
from catp.calibration.precision.rewrites.flat_rows import leave_rows_as_they_are
from catp.calibration.precision.rewrites.heads import split_heads_inside
from catp.calibration.precision.rewrites.joint_products import join_products
from catp.calibration.precision.rewrites.parted_products import part_products
from catp.calibration.precision.rewrites.votes import count_in_integers


def fit_to_cpu(model: ir.Model, decodes: bool = False, one_token: bool = False) -> None:
    """Rewrite a graph in place; inputs, outputs and their values stay what they are.

    Args:
        decodes: it is a language model that reads one token a row, and nothing else.
        one_token: it is a decoder that does, whose attention may know more than what the cache holds (T5's, distances).
    """
    graph = model.graph
    leave_rows_as_they_are(graph)
    if decodes or one_token:
        join_products(graph)
    split_heads_inside(graph)
    part_products(graph)
    if decodes:
        attend_over_cache(graph)
        model.opset_imports["com.microsoft"] = 1
    count_in_integers(graph)
