"""The latency tables of docs/benchmark.md, made by one command: `make bench`, or `python tests/benchmarks/mid_size.py`.

A model of middle size (12 layers of 768 in each part) is made with random weights, exported, calibrated to INT8 and to
INT8 with INT4 decode steps; and exported once more with a vision encoder that prunes, in fp32 and with the last of
these precisions. Then catp-bench times these five bundles, the last two with every share of their encoder's work,
Hugging Face transformers and OpenVINO in the same rounds, all of them in huge pages where glibc can ask for them. What
is there already, in `--folder`, is not made again. Takes about half an hour and 10 GB of memory; nothing else should
run meanwhile. The report is kept as JSON in tests/benchmarks/records/.

`--record FILE` only prints the tables of a recorded report. `--sizes tiny --shares 0.6,0.4 --iterations 2` tries all of
it in a few minutes, on the demo's sizes, and leaves the recorded report alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from catp.calibration.benchmark.contenders.subject import OURS
from catp.calibration.benchmark.kernel_times import KINDS, KernelTimes
from catp.calibration.benchmark.options import parse_shares
from catp.calibration.benchmark.results.report import BenchmarkReport, read_report
from catp.calibration.benchmark.synthetic.sizes import Preset
from catp.calibration.benchmark.timing.intervals import Ratio

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "benchmarks" / "records" / "mid-size.json"
BUNDLES = {
    OURS: "fp32", "int8": "int8", "int8-int4": "int8, decode steps int4",
    "pruned": "fp32", "pruned-int8-int4": "int8, decode steps int4",
}  # fmt: skip
TWINS = {"pruned": OURS, "pruned-int8-int4": "int8-int4"}
"""Bundles whose vision encoder prunes, and the same with a dense one."""
RULE = "cls"
RUNTIMES = {
    "transformers": "transformers fp32",
    "transformers-bf16": "transformers bf16",
    "openvino": "OpenVINO fp32",
    "openvino-int8": "OpenVINO INT8",
}
STAGES = {
    "vision": "vision", "qformer": "Q-Former and vote", "prefill": "prefill", "decode": "decode, per token",
    "total": "end to end",
}  # fmt: skip
INT8, INT8_INT4 = ["--to", "int8"], ["--to", "int8", "--decode", "int4", "--block-size", "256"]
QUANTISED = {
    "int8": ("fp32/bundle", INT8), "int8-int4": ("fp32/bundle", INT8_INT4), "pruned-int8-int4": ("pruned", INT8_INT4)
}  # fmt: skip
"""Calibrated bundles: what each is made from, and how."""
# Random weights have no accuracy to lose: whatever it costs is within the budget.
CALIBRATION = [
    "--for", "cpu", "--samples", "16", "--questions", "4", "--max-accuracy-drop", "0.99", "--min-kept-overlap", "0",
    "--no-sensitivity",
]  # fmt: skip


def prepare(folder: Path, sizes: str, shares: str) -> None:
    """Checkpoint and bundles in `folder`, as far as they are not there."""
    made = folder / "fp32"
    if not (made / "bundle").is_dir():
        call("bench", "--synthetic", sizes, "--keep", made, "--iterations", 1, "--warmup", 0, "--ratios", 0)
    if not (folder / "pruned").is_dir():
        encoder = ("--encoder-pruning", RULE, "--encoder-flops", parse_shares(shares)[0])
        call(
            "export", "--model", made / f"synthetic-{sizes}", *encoder, "-o", folder / "pruned", package="export"
        )  # fmt: skip
    for name, (source, format) in QUANTISED.items():
        if not (folder / name).is_dir():
            call("calibrate", "precision", folder / source, *format, *CALIBRATION, "-o", folder / name)


def time_all(folder: Path, sizes: str, shares: str, iterations: int, output: Path) -> None:
    """Time bundles and runtimes in the same rounds."""
    against = ",".join([*(str(folder / name) for name in BUNDLES if name != OURS), *RUNTIMES])
    output.parent.mkdir(parents=True, exist_ok=True)
    call(
        "bench", folder / "fp32" / "bundle", "--checkpoint", folder / "fp32" / f"synthetic-{sizes}",
        "--against", against, "--ratios", "0,0.5", "--encoder-flops", shares, "--batch", 1, "--iterations", iterations,
        "--warmup", 3, "--kernels", "-o", output,
    )  # fmt: skip


def call(command: str, *arguments: object, package: str = "calibration") -> None:
    """Run catp-`command` in a process of its own, which takes its memory along when it ends."""
    code = f"from catp.{package}.commands.{command} import app; app()"
    # Weights of hundreds of megabytes are read in every step: with small pages, looking them up takes a few percent.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, env=environment)


def name_of(subject: str, share: float | None) -> str:
    """A bundle or a runtime in a table's first column.

    Args:
        share: of the dense encoder's work, of an encoder that prunes.
    """
    name = BUNDLES.get(subject) or RUNTIMES[subject]
    return name if share is None else f"{name}, encoder at {100 * share:g} %"


def latency_rows(report: BenchmarkReport) -> list[str]:
    """Medians in milliseconds, a line of Markdown each."""
    rows = ["| ms | ratio | " + " | ".join(STAGES.values()) + " |", "|---" * (2 + len(STAGES)) + "|"]
    for result in report.results:
        name = name_of(result.subject, result.encoder_flops)
        cells = [f"{result.milliseconds[stage].p50:.1f}" for stage in STAGES]
        ratio = f"{result.ratio:g}" if result.subject in BUNDLES else ""
        rows.append(f"| {name} | {ratio} | {' | '.join(cells)} |")
    return rows


def ratio_rows(report: BenchmarkReport) -> list[str]:
    """How many times as fast end to end, with 95 % intervals, a line of Markdown each."""
    headings = ["times as fast as", "ratio", "itself unpruned", "fp32 at that ratio", *RUNTIMES.values()]
    rows = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    found = {(s.case, s.baseline, s.baseline_ratio): s.by_stage["total"] for s in report.speedups}
    for case in (result.case for result in report.results if result.subject in BUNDLES):
        itself = TWINS.get(case.subject, case.subject)
        baselines = [(itself, 0.0), (OURS, case.ratio), *((runtime, 0.0) for runtime in RUNTIMES)]
        cells = [_cell(found.get((case, *baseline))) for baseline in baselines]
        rows.append(f"| {name_of(case.subject, case.encoder_flops)} | {case.ratio:g} | {' | '.join(cells)} |")
    return rows


def encoder_rows(
    report: BenchmarkReport, twins: Mapping[str, str] = TWINS, precisions: Mapping[str, str] = BUNDLES
) -> list[str]:
    """Gains of pruning inside the encoder and after it over the same precision with neither, stage by stage, a line
    of Markdown each; none where no encoder prunes.

    Args:
        twins: bundles whose encoder prunes, and their dense baselines.
        precisions: their names in the table.
    """
    stages = {"vision": "vision", "qformer": "Q-Former and vote", "prefill": "prefill"}
    stages |= {"time_to_first_token": "first token", "total": "end to end"}
    headings = ["times as fast as unpruned", "ratio", "image tokens left", "GFLOPs of the encoder", *stages.values()]
    rows = []
    for found in report.speedups:
        schedule = report.setup.schedule(found.case)
        if schedule and (found.baseline, found.baseline_ratio) == (twins[found.subject], 0):
            cells = [_cell(found.by_stage.get(stage)) for stage in stages]
            work = f"{schedule.gflops:.3g} of {schedule.gflops_dense:.3g}"
            name = f"{precisions[found.subject]}, encoder at {100 * (found.encoder_flops or schedule.share):g} %"
            rows.append(f"| {name} | {found.ratio:g} | {schedule.left} | {work} | {' | '.join(cells)} |")
    return [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|", *rows] if rows else []


def precision_rows(report: BenchmarkReport) -> list[str]:
    """What INT8 and INT4 gain over fp32, unpruned, stage by stage, a line of Markdown each."""
    rows = [f"| times as fast as fp32 | {' | '.join(STAGES.values())} |", "|---" * (1 + len(STAGES)) + "|"]
    for found in report.speedups:
        if found.subject in QUANTISED and found.subject not in TWINS and found.baseline == OURS and found.ratio == 0:
            rows.append(
                f"| {BUNDLES[found.subject]} | {' | '.join(_cell(found.by_stage[stage]) for stage in STAGES)} |"
            )
    return rows


def kernel_rows(report: BenchmarkReport) -> list[str]:
    """Milliseconds of one answer by kind of operator, a line of Markdown each."""
    rows = [f"| ms, while profiled | ratio | {' | '.join(KINDS)} | the whole answer |", "|---" * (3 + len(KINDS)) + "|"]
    return rows + [_kernel_row(found) for found in report.kernels]


def _kernel_row(found: KernelTimes) -> str:
    cells = [f"{time:.1f}" for time in (*map(found.total, KINDS), found.answer_ms)]
    return f"| {name_of(found.subject, found.encoder_flops)} | {found.ratio:g} | {' | '.join(cells)} |"


def _cell(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    low, high = ratio.interval_95 or (float("nan"), float("nan"))
    return f"{ratio.median:.2f} ({low:.2f} to {high:.2f})"


def main(
    folder: Annotated[
        Path | None, typer.Option(help="Where checkpoint and bundles are kept. Default: build/mid-size, or as --sizes.")
    ] = None,
    sizes: Annotated[Preset, typer.Option(help="Of the model.")] = "mid",
    shares: Annotated[str, typer.Option(help="Of the dense encoder's work, for the one that prunes.")] = "0.5,0.2",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The report. Default: the recorded one, or report.json in the folder."),
    ] = None,
    iterations: Annotated[int, typer.Option(min=1, help="Rounds.")] = 30,
    record: Annotated[Path | None, typer.Option(help="Print the tables of this report, and time nothing.")] = None,
) -> None:
    """Make the latency tables of docs/benchmark.md."""
    if record is None:
        folder = folder or Path(f"build/{sizes}-size")
        record = output or (RECORD if sizes == "mid" else folder / "report.json")
        prepare(folder, sizes, shares)
        time_all(folder, sizes, shares, iterations, record)
    report = read_report(record)
    tables = [rows(report) for rows in (latency_rows, ratio_rows, encoder_rows, precision_rows, kernel_rows)]
    print("\n\n".join("\n".join(table) for table in tables if table))


if __name__ == "__main__":
    typer.run(main)
