"""Forms of a calibrated graph that ONNX Runtime's CPU kernels compute faster, with the same results. One file each."""

from __future__ import annotations

import onnx_ir as ir

from catp.calibration.precision.fitting.heads import split_heads_inside
from catp.calibration.precision.fitting.joint_products import join_products
from catp.calibration.precision.fitting.votes import count_in_integers


def fit_to_cpu(model: ir.Model) -> None:
    """Rewrite a graph in place; inputs, outputs and their values stay what they are."""
    for rewrite in (join_products, split_heads_inside, count_in_integers):
        rewrite(model.graph)
