"""catp-export: a BLIP-2 checkpoint to a bundle of ONNX graphs with token pruning inside."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.markup import escape
from rich.table import Table

from catp.export.demo import CHECKPOINT, samples
from catp.export.triton.repository import check_place, write_repository
from catp.runtime.bundle.encoder_pruning import Form, Merge, Rule
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Method, Positions, Precision
from catp.runtime.commands.console import busy, console, make_app, print_json_line, print_line
from catp.runtime.commands.encoder_options import ENCODER_PANEL, KeptOption, parse_counts
from catp.runtime.commands.inspect import describe_encoder
from catp.runtime.errors import UsageError
from catp.runtime.pruning import check_ratio, describe_default
from catp.runtime.system.optional_imports import reason_of

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
    adapter: Annotated[
        str | None,
        typer.Option(help="LoRA adapter as PEFT saves it, a local folder or a Hub id: merged into the checkpoint."),
    ] = None,
    keep_mass: Annotated[
        float | None,
        typer.Option(help="Default instead of a ratio: keep the fewest tokens with this share of the votes per image."),
    ] = None,
    method: Annotated[
        Method | None, typer.Option(help="How query tokens are voted for. Default: catp, where there are any.")
    ] = None,
    points: Annotated[
        str | None, typer.Option(help="catp: an image token gives points by rank (default) or its probability.")
    ] = None,
    image_weights: Annotated[
        str | None,
        typer.Option(
            help="What an image token's vote weighs. catp: uniform (default) or attention, which it receives in the "
            "ViT's last layer; coverage: distinctness (default), attention or uniform. After an encoder that prunes, "
            "patches in place of attention: those that were averaged into it."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(help="catp, coverage: cross-attention layers that vote: all (default), first, last, or 0,2."),
    ] = None,
    layer_weights: Annotated[
        str | None, typer.Option(help="catp, coverage: a weight for each of those layers: 1,0.5, or a JSON file.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="random: which order (default 0).")] = None,
    positions: Annotated[
        Positions, typer.Option(help="Default positions of kept tokens: as before pruning, or closing ranks.")
    ] = "original",
    diagnostics: Annotated[
        bool,
        typer.Option(
            "--diagnostics",
            help="Let the Q-Former graph also output other methods' scores and each query's attention, for catp-eval "
            "and catp-explain.",
        ),
    ] = False,
    precision: Annotated[
        Precision,
        typer.Option(
            help="Of vision encoder and language model; Q-Former and votes stay float32. bf16 is for GPUs (--provider "
            "cuda, tensorrt or tensorrt-rtx). Both are emulated to be verified, and refused where numbers exceed them."
        ),
    ] = "fp32",
    encoder_pruning: Annotated[
        Literal["none", Rule] | None,
        typer.Option(
            help="How image tokens are scored inside the vision encoder. Default: none; with --encoder-flops, "
            "--encoder-kept or --encoder-form dynamic, madtp where the checkpoint was trained with it, taught where it "
            "has a scorer, or else cls.",
            rich_help_panel=ENCODER_PANEL,
        ),
    ] = None,
    encoder_flops: Annotated[
        float | None,
        typer.Option(
            help="Share of the dense encoder's work that remains, such as 0.5.", rich_help_panel=ENCODER_PANEL
        ),
    ] = None,
    encoder_kept: KeptOption = None,
    encoder_scorer: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="taught: where catp-calibrate scorer wrote it. Default: beside the checkpoint's weights.",
            rich_help_panel=ENCODER_PANEL,
        ),
    ] = None,
    encoder_layers: Annotated[
        str, typer.Option(help="Layers that prune: all, or numbers such as 2,5,8.", rich_help_panel=ENCODER_PANEL)
    ] = "all",
    encoder_merge: Annotated[
        Merge | None,
        typer.Option(
            help="Tokens that are not kept: averaged into one more, each into the nearest, or dropped. Default: the "
            "rule's own.",
            rich_help_panel=ENCODER_PANEL,
        ),
    ] = None,
    encoder_form: Annotated[
        Form,
        typer.Option(
            help="Whether counts are the graph's input, or it counts for itself (madtp).", rich_help_panel=ENCODER_PANEL
        ),
    ] = "schedule",
    encoder_temperature: Annotated[
        float | None,
        typer.Option(help="Default of the dynamic form. Default: the checkpoint's.", rich_help_panel=ENCODER_PANEL),
    ] = None,
    text_encoder_flops: Annotated[
        float | None,
        typer.Option(
            help="Share of the text encoder's work that remains (little is saved). Default: all of it.",
            rich_help_panel=ENCODER_PANEL,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the bundle.")] = Path("catp-bundle"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    triton: Annotated[
        Path | None,
        typer.Option(help="Also write the bundle as a model of this repository of Triton's, under its own name."),
    ] = None,
    list_families: Annotated[
        bool,
        typer.Option("--list-families", help="Show which models are supported, and what each exports; do no more."),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="The manifest as JSON on standard output.")] = False,
) -> None:
    """Export a BLIP-2 checkpoint as ONNX graphs that prune query tokens by Cross-Attention Token Pruning.

    The bundle is verified against PyTorch before it is published. Without --model the embedded demo is exported:
    a small BLIP-2, trained to answer questions about coloured shapes.
    """
    if ratio is not None:
        check_ratio(ratio)
    options = {
        "points": points,
        "image_weights": image_weights,
        "layers": layers,
        "layer_weights": None if layer_weights is None else read_weights(layer_weights),
        "seed": seed,
    }
    options = {name: value for name, value in options.items() if value is not None}
    try:
        from catp.export.exporter import export_bundle
        from catp.export.families.listing import families_as_json, families_as_text
        from catp.export.image_encoders.plan import EncoderOptions
    except ImportError as error:
        raise UsageError(
            f"catp-export needs {error.name}, which {reason_of(error, error.name)}; pip install '.[export,cpu]'"
        ) from None
    if list_families:
        print_json_line(json.dumps(families_as_json())) if json_output else print_line(families_as_text())
        return
    if triton is not None:
        check_place(triton, output.resolve().name, overwrite)  # before minutes of work
    if model is None:
        console.print(f"No --model: exporting the embedded demo. A real one: --model {EXAMPLE_MODEL}", soft_wrap=True)
    bundle = export_bundle(
        model or str(CHECKPOINT),
        output,
        revision=revision,
        adapter=adapter,
        ratio=ratio,
        method=method,
        options=options,
        keep_mass=keep_mass,
        positions=positions,
        precision=precision,
        diagnostics=diagnostics,
        encoder=EncoderOptions(
            encoder_pruning,
            encoder_flops,
            encoder_form,
            encoder_layers,
            parse_counts(encoder_kept),
            encoder_merge,
            encoder_temperature,
            encoder_scorer,
            text_encoder_flops,
        ),
        overwrite=overwrite,
        step=busy,
        warn=lambda text: console.print(f"[yellow]warning:[/] {escape(text)}", soft_wrap=True),
    )
    _report(bundle)
    if triton is not None:
        written = write_repository(bundle, triton, overwrite=overwrite)
        console.print(f"Published {escape(str(written))} for Triton", soft_wrap=True)
    if json_output:
        print_json_line(json.dumps({"bundle": str(bundle.path), **bundle.manifest.model_dump(mode="json")}))


def read_weights(text: str) -> tuple[float, ...]:
    """Numbers separated by commas, or a JSON file with a list of them.

    Raises:
        UsageError: it is neither.
    """
    try:
        path = Path(text)
        found = json.loads(path.read_text()) if path.suffix == ".json" else [float(part) for part in text.split(",")]
        if not isinstance(found, list) or not all(type(weight) in (int, float) for weight in found):
            raise ValueError("not a list of numbers")
        return tuple(float(weight) for weight in found)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"--layer-weights {text!r}: give numbers separated by commas, or a JSON file with a list ({error})"
        ) from None


def _report(bundle: Bundle) -> None:
    manifest = bundle.manifest
    table = Table(title="Graphs", title_justify="left")
    for column in ("graph", "precision", "operators", "parameters", "size on disk"):
        table.add_column(column, justify="left" if column in ("graph", "precision") else "right")
    for name, graph in manifest.graphs.items():
        table.add_row(
            name,
            graph.precision_label,
            f"{graph.operators:,}",
            f"{graph.parameters / 1e6:,.1f} M",
            f"{graph.bytes / 1e6:,.1f} MB",
        )
    console.print(table)
    parity = Table(title="Parity with PyTorch", title_justify="left")
    for column in ("subject", "measure", "value", "limit"):
        parity.add_column(column, justify="left" if column in ("subject", "measure") else "right")
    for check in manifest.parity:
        parity.add_row(check.subject, check.measure, f"{check.value:.2g}", f"{check.limit:.2g}")
    console.print(parity)
    if manifest.precision != "fp32":
        console.print(
            f"No {manifest.precision} kernel was executed: each operator was computed in float32, and its result "
            f"rounded to {manifest.precision}.",
            soft_wrap=True,
        )
    for check in manifest.parity:
        if not check.passed:
            console.print(
                f"[yellow]warning:[/] {check.subject}: {check.measure} is {check.value:.2g}: "
                "rounding decides much of what this checkpoint's vote keeps, here and on every other device",
                soft_wrap=True,
            )
    if manifest.encoder_pruning:
        for line in describe_encoder(manifest.encoder_pruning):
            console.print(escape(line), soft_wrap=True, highlight=False)
    console.print(
        f"Published {escape(str(bundle.path))}: {describe_default(manifest)}. Next:",
        soft_wrap=True,
    )
    sample = samples()[0]
    scores = not manifest.writes_text
    command = ["catp-match" if scores else "catp-run", str(bundle.path), "--image", _short(sample.image)]
    if manifest.model.language == "two-images":
        command += ["--image", _short(samples()[1].image)]
    # A model that reads image tokens is asked the bare question, as BLIP was trained, or given how a caption begins.
    bare = {"captioning": "a picture of", "two-images": "both pictures have the same number of shapes"}.get(
        manifest.model.language, sample.question
    )
    command += ["--text" if scores else "--prompt", sample.prompt if manifest.vote else bare]
    if manifest.precision == "bf16":
        command += ["--provider", "cuda"]
    console.print(f"  {escape(shlex.join(command))}", soft_wrap=True)


def _short(path: Path) -> str:
    """Relative to the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


app = make_app(export)
