"""Recipes: what a graph is to be quantised to, and for which runtime."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import onnx

from catp.calibration.precision.formats.base import Range
from catp.calibration.precision.formats.dynamic_int8 import dynamic_int8
from catp.calibration.precision.formats.fp8 import fp8
from catp.calibration.precision.formats.int4 import int4
from catp.calibration.precision.formats.int8_rows import int8_rows
from catp.calibration.precision.formats.static_int8 import static_int8
from catp.calibration.precision.graphs.layers import Layer, exclude_options
from catp.runtime.bundle.chains import DECODE_GRAPH, made_from
from catp.runtime.bundle.manifest import Format, GraphSpec, Purpose
from catp.runtime.errors import CatpError, UsageError

Activations = Literal["static", "dynamic", "float"]
BLOCK_SIZE = 128
BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Recipe:
    """How every layer of a graph is quantised, but for those that are left out.

    Raises:
        UsageError: the runtime that it is for can't compute so.
    """

    format: Format
    purpose: Purpose
    activations: Activations
    block_size: int = BLOCK_SIZE
    reduce_range: bool = False

    def __post_init__(self) -> None:
        if self.format not in get_args(Format) or self.purpose not in get_args(Purpose):
            raise UsageError(
                f"{self.format} for {self.purpose}: unknown; accepted: {', '.join(get_args(Format))} for "
                f"{' or '.join(get_args(Purpose))}"
            )
        if self.format == "fp8" and self.purpose == "cpu":
            raise UsageError("fp8 for cpu: ONNX Runtime has no FP8 kernels for CPUs; give int8, or --for tensorrt")
        if self.activations == "dynamic" and self.purpose == "tensorrt":
            raise UsageError("dynamic activations for tensorrt: it takes scales known beforehand; give static")
        if self.block_size not in BLOCK_SIZES:
            accepted = ", ".join(map(str, BLOCK_SIZES))
            raise UsageError(f"block size {self.block_size}: weights that share a scale; accepted: {accepted}")

    @property
    def needs_ranges(self) -> bool:
        return self.activations == "static"

    def check(self, graph: str, spec: GraphSpec) -> None:
        """Raises UsageError where a graph of this precision can't be made into that."""
        if spec.precision == "bf16":
            raise UsageError(f"{graph}: it is in bf16, which can't be calibrated on a CPU; give an fp32 or fp16 bundle")
        if self.purpose == "cpu" and spec.precision != "fp32":
            raise UsageError(
                f"{graph}: it is in {spec.precision}, and ONNX Runtime's integer kernels for CPUs read float32; give a "
                "bundle of catp-export --precision fp32"
            )

    def takes(self, layer: Layer) -> bool:
        """Whether a layer can be quantised so; TensorRT wants whole blocks, and tables in floating point."""
        if layer.is_table:
            return self.purpose == "cpu"
        return self.format != "int4" or self.purpose == "cpu" or layer.depth % self.block_size == 0

    def fragment(self, layer: Layer, ranges: Mapping[str, Range]) -> onnx.GraphProto:
        """The layer, quantised.

        Args:
            ranges: by tensor, where activations are static.

        Raises:
            CatpError: a weight is no number, or infinite.
        """
        if not np.isfinite(layer.weight()).all():
            raise CatpError(
                f"{layer.name}: it has weights that are no number, or infinite, so it can't be quantised (fp16 "
                f"overflows where fp32 does not); mend the checkpoint, or leave it out: {exclude_options([layer.name])}"
            )
        if layer.is_table:
            return int8_rows(layer)
        with _silent():
            if self.format == "int4":
                return int4(layer, self.block_size, self.purpose)
            if self.format == "fp8":
                return fp8(layer, ranges[layer.input])
            if self.activations == "dynamic":
                return dynamic_int8(layer, self.reduce_range)
            return static_int8(layer, ranges[layer.input], self.purpose, self.reduce_range)


def recipe_of(recipes: Mapping[str, Recipe], graph: str, layer: Layer) -> Recipe:
    """By which of a bundle's recipes, by graph, a layer is quantised.

    A prompt gets logits of one row, in prefill as in decode: the head is read as decode steps read it.
    """
    decode = recipes.get(DECODE_GRAPH)
    return decode if decode and layer.is_output and graph == made_from(DECODE_GRAPH) else recipes[graph]


def make_recipe(
    format: Format,
    purpose: Purpose,
    activations: str | None = None,
    block_size: int = BLOCK_SIZE,
    reduce_range: bool = False,
) -> Recipe:
    """A recipe with the activations that suit it best where none are asked for.

    On a CPU, scaling every call by what it brings was as fast as known scales, and closer (docs/precision.md).

    Raises:
        UsageError: it can't be computed so.
    """
    if format == "int4":
        return Recipe(format, purpose, "float", block_size)
    if activations not in (None, "static", "dynamic"):
        raise UsageError(f"activations {activations!r}: unknown; accepted: static, dynamic")
    best: Activations = "dynamic" if purpose == "cpu" and activations != "static" else "static"
    if activations == "dynamic":
        best = "dynamic"
    return Recipe(format, purpose, best, block_size, reduce_range)


@contextmanager
def _silent() -> Iterator[None]:
    """The libraries tell the root logger about every layer, and some of it as an error that is none."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
