"""A graph's ONNX file made ready for TensorRT; `python -m catp.export.engines.prepare` writes it for other tools."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import numpy as np
import onnx
import typer
from onnx import numpy_helper

from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.console import make_app
from catp.runtime.errors import UsageError

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
    for value in [value for value in graph.input if value.name in fixed]:
        graph.input.remove(value)
        graph.initializer.append(numpy_helper.from_array(np.array([fixed[value.name]], np.int64), value.name))


def leave_out_refused(model: onnx.ModelProto) -> tuple[str, ...]:
    """Remove attributes that TensorRT refuses to be asked for, in place; which ones there were, for the sidecar."""
    left_out = set()
    for node in model.graph.node:
        for attribute in [a for a in node.attribute if (node.op_type, a.name) in _REFUSED]:
            node.attribute.remove(attribute)
            left_out.add(f"{node.op_type}.{attribute.name}")
    return tuple(sorted(left_out))


def write_prepared(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export.")],
    graph: Annotated[str, typer.Argument(help="One of its graphs.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the ONNX file and its weights.")],
    fix: Annotated[list[str] | None, typer.Option(help="A dimension's number: max_length=128.")] = None,
) -> None:
    """Write a graph as catp-build hands it to TensorRT, for trtexec, polygraphy and the like."""
    opened = open_bundle(bundle)
    if graph not in opened.manifest.graphs:
        raise UsageError(f"graph {graph!r}: unknown; accepted: {', '.join(opened.manifest.graphs)}")
    if output.resolve() == opened.path.resolve():
        raise UsageError(f"-o {output}: it is the bundle itself, whose graph would be replaced; give another folder")
    model = onnx.load(opened.graph_file(graph), load_external_data=False)
    prepare(model, dict(_dimension(text) for text in fix or ()))
    output.mkdir(parents=True, exist_ok=True)
    onnx.save(model, output / f"{graph}.onnx")
    weights = opened.manifest.graphs[graph].external_data
    if weights:
        # A copy beside the graph: ONNX's tools refuse weights that lie elsewhere or that have a second name.
        shutil.copy2(opened.file(weights), output / weights.path)


def _dimension(text: str) -> tuple[str, int]:
    name, _, number = text.partition("=")
    if not name or not number.isdigit():
        raise UsageError(f"--fix {text!r}: give a dimension and its number, such as max_length=128")
    return name, int(number)


if __name__ == "__main__":
    make_app(write_prepared)()
