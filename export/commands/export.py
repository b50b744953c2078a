"""catp-export: a BLIP-2 checkpoint to a bundle of ONNX graphs with token pruning inside."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from catp.export.demo import CHECKPOINT, samples
from catp.runtime.bundle import Bundle
from catp.runtime.commands.console import busy, console, make_app, print_json_line
from catp.runtime.errors import UsageError
from catp.runtime.manifest import Method, Positions, Precision
from catp.runtime.pruning import check_ratio, num_kept

EXAMPLE_MODEL = "Salesforce/blip2-opt-2.7b"


def export(
    ratio: Annotated[
        float | None,
        typer.Option(
            help="Fraction of query tokens removed, 0 <= ratio < 1; catp-run can choose another. "
            "Default: 0.5 (0 with --method none)."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help=f"Checkpoint: a local folder or a Hub id ({EXAMPLE_MODEL}). Default: the demo.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    method: Annotated[Method, typer.Option(help="How query tokens are voted for.")] = "catp",
    positions: Annotated[
        Positions, typer.Option(help="Default positions of kept tokens: as before pruning, or closing ranks.")
    ] = "original",
    precision: Annotated[
        Precision, typer.Option(help="Of vision encoder and language model; Q-Former and votes stay float32.")
    ] = "fp32",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the bundle.")] = Path("catp-bundle"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="The manifest as JSON on standard output.")] = False,
) -> None:
    """Export a BLIP-2 checkpoint as ONNX graphs that prune query tokens by Cross-Attention Token Pruning.

    The bundle is verified against PyTorch before it is published. Without --model the embedded demo is exported:
    a small BLIP-2, trained to answer questions about coloured shapes.
    """
    if ratio is None:
        ratio = 0.0 if method == "none" else 0.5
    check_ratio(ratio)
    try:
        from catp.export.exporter import export_bundle
    except ImportError as error:
        raise UsageError(
            f"catp-export needs {error.name}, which is not installed; pip install '.[export,cpu]'"
        ) from None
    if model is None:
        console.print(f"No --model: exporting the embedded demo. A real one: --model {EXAMPLE_MODEL}")
    bundle = export_bundle(
        model or str(CHECKPOINT),
        output,
        revision=revision,
        ratio=ratio,
        method=method,
        positions=positions,
        precision=precision,
        overwrite=overwrite,
        step=busy,
    )
    _report(bundle)
    if json_output:
        print_json_line(json.dumps({"bundle": str(bundle.path), **bundle.manifest.model_dump(mode="json")}))


def _report(bundle: Bundle) -> None:
    manifest = bundle.manifest
    table = Table(title="Graphs", title_justify="left")
    for column in ("graph", "precision", "operators", "parameters", "size on disk"):
        table.add_column(column, justify="left" if column in ("graph", "precision") else "right")
    for name, graph in manifest.graphs.items():
        size = graph.file.size + (graph.external_data.size if graph.external_data else 0)
        table.add_row(
            name, graph.precision, f"{graph.operators:,}", f"{graph.parameters / 1e6:,.1f} M", f"{size / 1e6:,.1f} MB"
        )
    console.print(table)
    parity = Table(title="Parity with PyTorch", title_justify="left")
    for column in ("subject", "measure", "value", "limit"):
        parity.add_column(column, justify="left" if column in ("subject", "measure") else "right")
    for check in manifest.parity:
        parity.add_row(check.subject, check.measure, f"{check.value:.2g}", f"{check.limit:.2g}")
    console.print(parity)
    for check in manifest.parity:
        if not check.passed:
            console.print(
                f"[yellow]warning:[/] {check.subject}: {check.measure} is {check.value:.2g}: "
                "rounding decides much of what this checkpoint's vote keeps, here and on every other device",
                soft_wrap=True,
            )
    pruning = manifest.pruning
    console.print(
        f"Published {escape(str(bundle.path))}: {pruning.method} keeps "
        f"{num_kept(pruning.ratio, pruning.num_query_tokens)} of {pruning.num_query_tokens} query tokens at ratio "
        f"{pruning.ratio:g}. Next:",
        soft_wrap=True,
    )
    sample = samples()[0]
    command = ["catp-run", str(bundle.path), "--image", _short(sample.image), "--prompt", sample.prompt]
    console.print(f"  {escape(shlex.join(command))}", soft_wrap=True)


def _short(path: Path) -> str:
    """Relative to the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


app = make_app(export)
