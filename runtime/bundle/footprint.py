"""The memory that a bundle's answers need, estimated from its manifest alone, before anything is loaded."""

from __future__ import annotations

import math
from dataclasses import dataclass

import ml_dtypes  # noqa: F401  numpy's bfloat16
import numpy as np

from catp.runtime.bundle.manifest import GraphSpec, Manifest
from catp.runtime.errors import UsageError
from catp.runtime.limits import CACHE_ROUNDING, PROGRAM_BYTES


@dataclass(frozen=True)
class Footprint:
    """Bytes, by what takes them. Activations are not counted: they depend on the engine."""

    weights: int
    cache: int
    program: int = PROGRAM_BYTES

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.program


def estimate(manifest: Manifest, rows: int, slots: int, widens_half: bool) -> Footprint:
    """Memory of a bundle that answers `rows` prompts at a time, each of `slots` tokens with image and answer.

    Args:
        widens_half: the provider computes fp16 in float32, as ONNX Runtime does on a CPU: such weights take twice
            their size.
    """
    graphs = manifest.graphs.values()
    weights = sum(
        graph.bytes * (2 if widens_half and graph.precision == "fp16" and graph.quantization is None else 1)
        for graph in graphs
    )
    slots = math.ceil(slots / CACHE_ROUNDING) * CACHE_ROUNDING
    # Of a decode graph with weights of its own the cache is the other's.
    caches = [cache_bytes(graph, rows, slots, manifest.tokens) for graph in graphs]
    return Footprint(weights, max(caches, default=0))


def cache_bytes(graph: GraphSpec, rows: int, slots: int, image_tokens: int | None = None) -> int:
    """Bytes of the keys and values that a graph reads for so many rows of so many tokens; 0 where it has no cache.

    Args:
        image_tokens: of a picture, where a graph reads their keys and values; None: they are not counted.
    """
    total = 0
    for spec in graph.inputs:
        if spec.name.startswith(("past_key_values.", "cross_key_values.")):
            length = (image_tokens or 0) if spec.shape[2] == "image_tokens" else slots
            total += rows * length * int(spec.shape[1]) * int(spec.shape[3]) * np.dtype(spec.dtype).itemsize
    return total


def check_memory(subject: str, needed: Footprint, most: float | None) -> None:
    """Raises UsageError where a bundle needs more than it may have.

    Args:
        subject: for the message, such as "bundle build/demo".
        most: GB (10^9 bytes); None: as much as it takes.
    """
    if most is None or needed.total <= most * 1e9:
        return
    parts = (("weights", needed.weights), ("cache", needed.cache), ("program", needed.program))
    listed = ", ".join(f"{name} {_gigabytes(size)}" for name, size in parts)
    raise UsageError(
        f"{subject}: it needs about {_gigabytes(needed.total)} GB ({listed}), and --max-memory is {most:g}; give a "
        "quantised bundle (catp-calibrate precision), fewer rows, beams or tokens, or more memory"
    )


def _gigabytes(size: int) -> str:
    """Three decimals where two would say nothing."""
    return f"{size / 1e9:,.2f}" if size >= 1e8 else f"{size / 1e9:.3f}"
