"""python -m catp.export.commands.prepare: a graph as catp-build hands it to TensorRT, for other tools."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import onnx
import typer

from catp.export.engines.prepare import prepare
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.console import make_app
from catp.runtime.errors import UsageError


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
