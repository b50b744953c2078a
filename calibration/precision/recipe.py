"""Recipes: what a graph is to be quantised to, and for which runtime."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

import numpy as np
import onnx

from catp.calibration.precision.formats import FORMATS
from catp.calibration.precision.formats.base import BLOCK_SIZE, Activations, LayerFormat, Options, Range
from catp.calibration.precision.formats.int8_rows import int8_rows
from catp.calibration.precision.graphs.layers import Layer, exclude_options
from catp.runtime.bundle.chains import DECODE_GRAPH, made_from
from catp.runtime.bundle.manifest import Format, GraphSpec, Purpose
from catp.runtime.errors import CatpError, UsageError

BLOCK_SIZES = (16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Recipe:
    """How every layer of a graph is quantised, but for those that are left out; see make_recipe."""

    format: Format
    way: LayerFormat
    options: Options

    @property
    def purpose(self) -> Purpose:
        return self.options.purpose

    @property
    def activations(self) -> Activations:
        return self.way.activations

    @property
    def block_size(self) -> int | None:
        """Weights that share a scale, where the format has blocks."""
        return self.options.block_size if self.way.in_blocks else None

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
        return self.purpose == "cpu" or not self.block_size or layer.depth % self.block_size == 0

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
            return self.way.quantise(layer, ranges[layer.input] if self.needs_ranges else None, self.options)


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
    """A recipe with the activations that suit the runtime best where none are asked for.

    Args:
        activations: "static" or "dynamic"; a format that leaves them in floating point does so whatever is asked.

    Raises:
        UsageError: it can't be computed so.
    """
    if format not in FORMATS or purpose not in get_args(Purpose):
        raise UsageError(
            f"{format} for {purpose}: unknown; accepted: {', '.join(FORMATS)} for {' or '.join(get_args(Purpose))}"
        )
    if activations not in (None, "static", "dynamic"):
        raise UsageError(f"activations {activations!r}: unknown; accepted: static, dynamic")
    if block_size not in BLOCK_SIZES:
        accepted = ", ".join(map(str, BLOCK_SIZES))
        raise UsageError(f"block size {block_size}: weights that share a scale; accepted: {accepted}")
    ways = FORMATS[format]
    if all(purpose in way.refused for way in ways):
        raise UsageError(f"{format} for {purpose}: {ways[0].refused[purpose]}")
    asked = [way for way in ways if activations in (None, way.activations) or way.activations == "float"]
    if not asked:
        accepted = ", ".join(way.activations for way in ways)
        raise UsageError(f"{activations} activations for {format}: it has none; give {accepted}")
    for way in asked:
        if purpose not in way.refused:
            return Recipe(format, way, Options(purpose, block_size, reduce_range))
    raise UsageError(f"{activations} activations for {purpose}: {asked[0].refused[purpose]}")


@contextmanager
def _silent() -> Iterator[None]:
    """The libraries tell the root logger about every layer, and some of it as an error that is none."""
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(disabled)
