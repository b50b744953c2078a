"""catp-build: TensorRT engines from a bundle's graphs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from catp.export.triton.repository import check_place, write_repository
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.plans import PlanSpec, Profile, Target
from catp.runtime.commands.console import busy, console, make_app, print_json_line, print_line
from catp.runtime.errors import UsageError
from catp.runtime.pruning import check_ratio
from catp.runtime.system.optional_imports import reason_of


def build(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export.")],
    target: Annotated[
        Target, typer.Option(help="tensorrt-rtx builds without a GPU; tensorrt needs the GPU that it builds for.")
    ],
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            help="To build for, such as 8.6; repeat it for one plan that serves several. Default: the GPU here."
        ),
    ] = None,
    max_batch: Annotated[int, typer.Option(help="Images, or videos, at a time.")] = 4,
    max_prompt: Annotated[int, typer.Option(help="Tokens of a prompt.")] = 64,
    max_length: Annotated[
        int, typer.Option(help="Slots of the KV cache: image tokens kept, prompt and answer together.")
    ] = 128,
    ratio: Annotated[
        float | None,
        typer.Option(help="Fraction of query tokens removed that is optimised for. Default: the bundle's."),
    ] = None,
    fixed_ratio: Annotated[
        bool, typer.Option("--fixed-ratio", help="Bake the ratio in: the engines then run at no other.")
    ] = False,
    fixed_schedule: Annotated[
        bool,
        typer.Option(
            "--fixed-schedule", help="Bake the schedule of a vision encoder that prunes in: it then runs no other."
        ),
    ] = False,
    dynamic_encoder: Annotated[
        bool,
        typer.Option(
            "--dynamic-encoder",
            help="Build encoders in the dynamic form too. No such engine was executed, and no provider here runs it.",
        ),
    ] = False,
    workspace: Annotated[
        str | None, typer.Option(help="Scratch memory of a layer at most, such as 4GiB. Default: the target's.")
    ] = None,
    triton: Annotated[
        Path | None,
        typer.Option(help="Also write it as a model of this repository of Triton's, engines included."),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Build again what is up to date; replace what is in --triton.")
    ] = False,
    print_commands: Annotated[
        bool,
        typer.Option("--print-commands", help="Print the equivalent polygraphy and trtexec commands; build nothing."),
    ] = False,
    json_output: Annotated[bool, typer.Option("--json", help="The sidecars as JSON on standard output.")] = False,
) -> None:
    """Build a TensorRT engine for every graph of a bundle, into its engines/ folder.

    What is up to date is not built again. Precision comes from the graphs: export with --precision fp16 for
    half-precision engines. For example, on any machine with x86-64 Linux:

    catp-build catp-bundle --target tensorrt-rtx --compute-capability 8.6 --compute-capability 8.9
    """
    try:
        from catp.export.engines.builder import build_engines, plan_requests
        from catp.export.engines.equivalents import commands
        from catp.export.engines.profiles import Limits
        from catp.export.engines.targets import choose_capabilities, open_target
    except ImportError as error:
        raise UsageError(
            f"catp-build needs {error.name}, which {reason_of(error, error.name)}; pip install '.[build]'"
        ) from None
    if fixed_ratio and ratio is None:
        ratio = open_bundle(bundle, verify=False).manifest.pruning.ratio
    if ratio is not None:
        check_ratio(ratio)
    limits = Limits(max_batch, max_prompt, max_length, ratio, fixed_ratio, fixed_schedule, dynamic_encoder)
    if triton is not None:
        check_place(triton, bundle.resolve().name, overwrite)
    capabilities = compute_capability or ()
    workspace_bytes = None if workspace is None else parse_size(workspace)
    if print_commands:
        opened, of_bundle = open_target(target), open_bundle(bundle, verify=False)
        chosen = choose_capabilities(opened, capabilities)
        for request in plan_requests(of_bundle, opened, chosen, limits, workspace_bytes):
            for line in commands(bundle, request):
                print_line(line)
        return
    built = build_engines(bundle, target, capabilities, limits, workspace_bytes, overwrite, busy)
    plans = built.engines.plans
    if built.new:
        console.print(_table([plans[graph] for graph in plans], built.new))
    word = "Published" if built.new else "Up to date:"
    console.print(f"{word} {escape(str(built.engines.folder))}", soft_wrap=True)
    if triton is not None:
        written = write_repository(open_bundle(bundle, verify=False), triton, target, overwrite)
        console.print(f"Published {escape(str(written))} for Triton", soft_wrap=True)
    if json_output:
        print_json_line(
            json.dumps(
                {
                    "schema_version": 1,
                    "engines": str(built.engines.folder),
                    "built": built.new,
                    "plans": {graph: spec.model_dump(mode="json") for graph, spec in plans.items()},
                }
            )
        )


def parse_size(text: str) -> int:
    """Bytes of "4GiB", "512 MiB", "1e9" or "1GB".

    Raises:
        UsageError: it is no size.
    """
    units = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "k": 2**10, "m": 2**20, "g": 2**30}
    units |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "b": 1}
    match = re.fullmatch(r"\s*([0-9.]+(?:e\d+)?)\s*([a-z]*)\s*", text.lower())
    try:
        assert match is not None
        size = int(float(match[1]) * units[match[2]])
    except (AssertionError, ValueError, KeyError, OverflowError):
        size = 0
    if not 1 <= size < 2**63:
        raise UsageError(f"size {text!r}: give a number and a unit, such as 4GiB or 512MiB")
    return size


def _table(plans: list[PlanSpec], new: tuple[str, ...]) -> Table:
    table = Table(title="Engines", title_justify="left")
    for column in ("graph", "plan size", "build time", "profiles (min to max)"):
        table.add_column(column, justify="right" if column in ("plan size", "build time") else "left")
    for spec in plans:
        table.add_row(
            spec.graph,
            f"{spec.plan.size / 1e6:,.1f} MB",
            f"{spec.build_seconds:.1f} s" if spec.graph in new else "there already",
            "\n".join(_describe(profile) for profile in spec.request.profiles),
        )
    return table


def _describe(profile: Profile) -> str:
    """Names what varies; the many tensors of caches are left to the sidecar."""
    ranges = {**profile.shapes, **profile.values}
    parts = [
        f"{name} {_shape(extent.min)}" + ("" if extent.min == extent.max else f" to {_shape(extent.max)}")
        for name, extent in ranges.items()
        if not name.startswith(("past_key_values.", "cross_key_values."))
        and (len(extent.min) > 1 or name in profile.values)
    ]
    return f"{profile.name}: {', '.join(parts)}"


def _shape(extents: tuple[int, ...]) -> str:
    return "x".join(map(str, extents))


app = make_app(build)
