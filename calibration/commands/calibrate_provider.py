"""catp-calibrate provider: the fastest provider for each graph of a bundle on this machine."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.markup import escape
from rich.progress import Progress

from catp.calibration.benchmark.timing.intervals import FEWEST
from catp.calibration.data import open_data
from catp.calibration.data.demo import DEMO_SEED
from catp.calibration.placement.engines import Engines
from catp.calibration.placement.report import PlacementReport
from catp.calibration.placement.search import Measured, choose, first_calls, time_graph
from catp.calibration.placement.tables import placement_table
from catp.calibration.supported import check_data
from catp.runtime.bundle.folder import open_bundle, write_manifest
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.bundle.placements import Place, Placement
from catp.runtime.commands.console import busy, console, print_json_line
from catp.runtime.errors import UsageError
from catp.runtime.files import check_file_output, write_file
from catp.runtime.system.machine import available_cpus, cpu_model

QUESTIONS = 32
"""Questions asked: their answers are compared."""
ROUNDS = 30
"""Rounds of timing, for each graph."""
_PRECISIONS = get_args(get_args(Place.model_fields["precision"].annotation)[0])


def calibrate_provider(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export; its manifest gets the choice.")],
    device: Annotated[
        str | None,
        typer.Option(help="Devices of OpenVINO, separated by commas. Default: all that this machine has."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="What OpenVINO multiplies in, separated by commas: f32, bf16, f16. Default: each device's."),
    ] = None,
    data: Annotated[str, typer.Option(metavar="demo|FOLDER|JSONL", help="What to ask, as for catp-eval.")] = "demo",
    limit: Annotated[int, typer.Option(min=1, help="Questions whose answers must not change.")] = QUESTIONS,
    rounds: Annotated[int, typer.Option(min=FEWEST, help="Rounds of timing, for each graph.")] = ROUNDS,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads within an operator.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of questions, and of the order.")] = DEMO_SEED,
    report: Annotated[Path | None, typer.Option(help="The report as a JSON file.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="The report as one line on standard output.")] = False,
) -> None:
    """Choose the fastest provider for each graph on this machine; --provider auto then follows it.

    Each graph is timed in ONNX Runtime and in OpenVINO, in the same rounds. A faster one is chosen where no answer and
    no kept token changes with it. The choice goes into the manifest with the processor that it was measured on.

    catp-calibrate provider catp-bundle --precision f32,bf16
    """
    check_file_output("--report", report)
    opened = open_bundle(bundle)
    manifest = opened.manifest
    if not manifest.writes_text:
        raise UsageError(
            f"catp-calibrate provider: bundle {bundle} is {manifest.model.family}, which generates no text "
            "whose tokens could be compared; accepted: what answers in words"
        )
    check_data(opened, data, "catp-calibrate provider")
    asked = open_data(data).subset(limit, None, seed)
    places = _places(device, precision)
    engines = Engines(opened, threads)
    for place in places:
        engines.provider(place)  # what is refused is refused before anything takes time
    questions = list(asked)
    with busy("load the bundle"):
        calls = first_calls(engines, questions[0])
    measured: list[Measured] = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("time", total=rounds * len(calls))
        for graph, inputs in calls.items():
            measured += time_graph(engines, graph, inputs, places, rounds, seed, lambda: progress.advance(task))
    with busy("compare answers"):
        chosen, judged = choose(engines, measured, questions)
    placement = Placement(cpu=cpu_model(), cpus=available_cpus(), versions=_versions(), graphs=chosen)
    found = PlacementReport(manifest.model.id, asked.name, len(questions), rounds, placement, judged)
    if report is not None:
        write_file(report, lambda file: file.write_text(json.dumps(found.to_dict(), indent=1) + "\n"))
    if json_output:
        print_json_line(json.dumps(found.to_dict()))
    console.print(placement_table(judged))
    write_manifest(bundle, _with(manifest, placement), replaces=manifest)
    what = ", ".join(f"{graph} by {place.label}" for graph, place in chosen.items())
    console.print(
        f"{escape(str(bundle))}: on {escape(placement.cpu)} with {placement.cpus} CPUs, --provider auto runs "
        f"{f'{what}, and what is left' if what else 'everything'} by cpu",
        soft_wrap=True,
    )


def _with(manifest: Manifest, placement: Placement) -> Manifest:
    """The manifest with a placement, in place of an earlier one for the same machine."""
    others = [one for one in manifest.placements if not one.holds_for(placement.cpu, placement.cpus)]
    return manifest.model_copy(update={"placements": (*others, placement)})


def _places(device: str | None, precision: str | None) -> list[Place]:
    """OpenVINO's devices, each in every precision that is asked for.

    Raises:
        UsageError: OpenVINO is not installed, or there is no such device or precision.
    """
    from catp.runtime.providers.openvino.provider import (
        DEFAULT_PRECISIONS,
        available_devices,
        check_device,
        open_openvino,
    )

    open_openvino("openvino")
    given = available_devices() if device is None else [part.strip() for part in device.split(",")]
    devices = dict.fromkeys(check_device("openvino", one) for one in given)
    wanted = None if precision is None else dict.fromkeys(part.strip() for part in precision.split(","))
    if unknown := [one for one in wanted or () if one not in _PRECISIONS]:
        raise UsageError(f"precision {unknown[0][:50]!r}: accepted: {', '.join(_PRECISIONS)}, separated by commas")
    return [
        Place.model_validate({"provider": "openvino", "device": one, "precision": how})
        for one in devices
        for how in wanted or (DEFAULT_PRECISIONS[one.partition(".")[0]],)
    ]


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("onnxruntime", "openvino")}
