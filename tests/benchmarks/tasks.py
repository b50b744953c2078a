"""Every task of MADTP's paper at full size: `python tests/benchmarks/tasks.py`.

Checkpoints of the paper's geometries with random weights are exported dense and with a vision encoder at a fifth of its
work (the rule `cls` in every layer), each export in a process of its own, whose time and memory are noted, and both
bundles are calibrated to INT8. Then catp-bench times one request of each task in these four bundles, in transformers
(for NLVR2 the module of this project), eager and compiled, and in OpenVINO, in interleaved rounds on the CPU. Quote the
ratios: they are paired by round. Nothing else should run meanwhile: an hour and a half, 10 GB of memory. What is there
already, in `--folder`, is not made or timed again. The reports are kept as JSON in tests/benchmarks/records/tasks/;
`--record FOLDER` only prints the tables of those there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from mid_size import CALIBRATION, INT8, ROOT, call
from pydantic import BaseModel, ConfigDict

from catp.calibration.benchmark.contenders.subject import OURS, Case, make_picture
from catp.calibration.benchmark.results.report import BenchmarkReport, read_report
from catp.calibration.benchmark.synthetic.checkpoint import save_checkpoint
from catp.calibration.benchmark.synthetic.sizes import Preset
from catp.calibration.benchmark.timing.intervals import Ratio

RECORDS = ROOT / "tests" / "benchmarks" / "records" / "tasks"
TASKS: Mapping[str, Preset] = {
    "captions, 384": "blip-caption",
    "VQA, 480": "blip-vqa",
    "retrieval, 384": "blip-retrieval",
    "NLVR2, 384": "blip-nlvr2",
    "CLIP, ViT-B/16 at 224": "clip-b16",
}
SHARE = 0.2
BUNDLES = {OURS: "dense", "pruned": f"encoder at {SHARE:.0%}"}
INT8_BUNDLES = {"dense-int8": "dense, INT8", "pruned-int8": f"encoder at {SHARE:.0%}, INT8"}
RUNTIMES = {
    "transformers": "PyTorch",
    "compile": "compiled",
    "openvino": "OpenVINO",
    "openvino-int8": "OpenVINO INT8",
}
GAINS = {
    "fp32 over dense": ("pruned", OURS),
    "INT8 over dense INT8": ("pruned-int8", "dense-int8"),
    "INT8 over PyTorch": ("pruned-int8", "transformers"),
    "INT8 over OpenVINO INT8": ("pruned-int8", "openvino-int8"),
    "dense INT8 over OpenVINO INT8": ("dense-int8", "openvino-int8"),
}
"""Columns of times as fast: what is faster, and than what."""


class Export(BaseModel):
    """Time, memory and size of an export.

    Args:
        peak_bytes: largest resident set, mapped files included.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float
    peak_bytes: int
    bundle_bytes: int


class Exports(BaseModel):
    """The exports of one task."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    parameters: int
    dense: Export
    pruned: Export


def export(checkpoint: Path, output: Path, *options: object) -> Export:
    """`catp-export`, with its time and its memory."""
    code = "from catp.export.commands.export import app; app()"
    command = [sys.executable, "-c", code, "--model", checkpoint, *options, "-o", output]
    began = time.monotonic()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"catp-export of {checkpoint} failed")
    size = sum(path.stat().st_size for path in output.iterdir())
    return Export(seconds=time.monotonic() - began, peak_bytes=1024 * usage.ru_maxrss, bundle_bytes=size)


def prepare(preset: Preset, folder: Path) -> Exports:
    """Checkpoint and bundles in `folder`, as far as they are not there."""
    checkpoint, kept = folder / "checkpoint", folder / "exports.json"
    if not kept.is_file():
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        save_checkpoint(preset, checkpoint)
        dense = export(checkpoint, folder / "dense")
        pruned = export(checkpoint, folder / "pruned", "--encoder-pruning", "cls", "--encoder-flops", SHARE)
        graphs = json.loads((folder / "dense" / "catp.json").read_bytes())["graphs"].values()
        parameters = sum(graph["parameters"] for graph in graphs)
        kept.write_text(Exports(parameters=parameters, dense=dense, pruned=pruned).model_dump_json(indent=1) + "\n")
    data = ("--data", write_captions(folder)) if preset == "blip-caption" else ()
    for name in ("dense", "pruned"):
        if not (folder / f"{name}-int8").is_dir():
            call("calibrate", "precision", folder / name, *INT8, *CALIBRATION, *data, "-o", folder / f"{name}-int8")
    return Exports.model_validate_json(kept.read_bytes())


def write_captions(folder: Path) -> Path:
    """Pictures with how their captions begin and go on, which no other data has."""
    lines = []
    for number in range(64):
        make_picture(np.random.default_rng(number)).save(folder / f"{number}.png")
        lines.append({"image": f"{number}.png", "question": "a picture of", "answers": ["noise"]})
    file = folder / "captions.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return file


def measure(folder: Path, rounds: int, report: Path) -> None:
    """One request in all bundles and runtimes, in the same rounds."""
    bundles = [folder / name for name in (*BUNDLES, *INT8_BUNDLES) if name != OURS]
    call(
        "bench", folder / "dense", "--checkpoint", folder / "checkpoint", "--against",
        ",".join(map(str, (*bundles, *RUNTIMES))), "--encoder-flops", SHARE, "--batch", 1, "--iterations", rounds,
        "--warmup", 2, "-o", report, *(("--texts", 1) if "clip" in report.stem else ()),
    )  # fmt: skip


def tables(reports: Mapping[str, BenchmarkReport], exports: Mapping[str, Exports]) -> list[list[str]]:
    """Markdown: times, what pruning gains, exports; by task."""
    columns = {**RUNTIMES, **BUNDLES, **INT8_BUNDLES}
    times = [["ms", *columns.values()]]
    gains = [["times as fast", *GAINS]]
    costs = [["task", "parameters in graphs", "bundle", "dense export", f"export at {SHARE:.0%}", "image tokens left"]]
    for task, report in reports.items():
        cases = {name: _case(report, name) for name in columns}
        times.append([task, *(f"{report.result(case).milliseconds['total'].p50:.0f}" for case in cases.values())])
        found = {(one.case, one.against): one.by_stage["total"] for one in report.speedups}
        gains.append([task, *(_cell(found[cases[fast], cases[slow]]) for fast, slow in GAINS.values())])
        cost, schedule = exports[task], report.setup.schedule(cases["pruned"])
        assert schedule is not None
        sizes = f"{cost.parameters / 1e6:.0f} million", f"{cost.pruned.bundle_bytes / 1e9:.2f} GB"
        made = [f"{one.seconds:.0f} s, {one.peak_bytes / 1e9:.1f} GB" for one in (cost.dense, cost.pruned)]
        costs.append([task, *sizes, *made, f"{schedule.left}"])
    return [_markdown(rows) for rows in (times, gains, costs)]


def _case(report: BenchmarkReport, name: str) -> Case:
    return next(result.case for result in report.results if result.subject == name)


def _cell(ratio: Ratio) -> str:
    low, high = ratio.interval_95 or (float("nan"), float("nan"))
    return f"{ratio.median:.2f} ({low:.2f} to {high:.2f})"


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    head, *others = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "|---" * len(rows[0]) + "|", *others]


def main(
    folder: Annotated[Path, typer.Option(help="Where checkpoints and bundles are kept.")] = Path("build/tasks"),
    rounds: Annotated[int, typer.Option(min=6)] = 20,
    only: Annotated[str, typer.Option(help="Tasks whose names begin so.")] = "",
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the reports.")] = RECORDS,
    record: Annotated[Path | None, typer.Option(help="Print the tables of its reports, and time nothing.")] = None,
) -> None:
    """Export and time every task."""
    if record is None:
        output.mkdir(parents=True, exist_ok=True)
        for name, preset in TASKS.items():
            if name.startswith(only) and not (output / f"{preset}.json").is_file():
                exports = prepare(preset, folder / preset)
                (output / f"{preset}-exports.json").write_text(exports.model_dump_json(indent=1) + "\n")
                measure(folder / preset, rounds, output / f"{preset}.json")
    there = {name: preset for name, preset in TASKS.items() if ((record or output) / f"{preset}.json").is_file()}
    reports = {name: read_report((record or output) / f"{preset}.json") for name, preset in there.items()}
    exports_of = {
        name: Exports.model_validate_json(((record or output) / f"{preset}-exports.json").read_bytes())
        for name, preset in there.items()
    }
    print("\n\n".join("\n".join(table) for table in tables(reports, exports_of)))


if __name__ == "__main__":
    typer.run(main)
