"""The graphs of a bundle, one file each: what is traced, under which names, with which free dimensions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch


def interface_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of embeddings of `dtype` on their way from graph to graph.

    float32 for bfloat16: a caller may want to see them, and ONNX Runtime can't show the host a bfloat16 tensor.
    """
    return torch.float32 if dtype == torch.bfloat16 else dtype


@dataclass
class Graph:
    """A module to trace and the contract of its ONNX file."""

    name: str  # the file's stem and the manifest's key
    module: torch.nn.Module
    example: tuple[Any, ...]  # example inputs, in forward's order
    input_names: list[str]
    output_names: list[str]
    dynamic_shapes: dict[str, Any]  # per argument of forward, as torch.export takes them
    keeps_float32: bool = False  # whatever the bundle's precision
    dimension_names: dict[str, str] = field(default_factory=dict)  # what torch.export called it: its name in the file
