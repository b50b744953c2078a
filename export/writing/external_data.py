"""ONNX graphs on disk: `NAME.onnx`, and `NAME.onnx_data` with its weights."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

EXTERNAL_FROM_BYTES = 1024
"""Weights from this size on lie in `<graph>.onnx_data`, in every bundle: one rule, and graph files that diff."""


def save_model(model: ir.Model, path: Path) -> Path:
    """Write a model, streaming its weights from where they are; the path of the weights' file."""
    data = path.with_suffix(".onnx_data")
    ir.save(model, path, external_data=data.name, size_threshold_bytes=EXTERNAL_FROM_BYTES)
    return data
