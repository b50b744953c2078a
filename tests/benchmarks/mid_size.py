"""The latency tables of docs/benchmark.md, made by one command: `make bench`, or `python tests/benchmarks/mid_size.py`.

A model of middle size (12 layers of 768 in each part) is made with random weights, exported, calibrated to INT8 and to
INT8 with INT4 decode steps; then catp-bench times these three bundles, Hugging Face transformers and OpenVINO in the
same rounds, all of them in huge pages where glibc can ask for them. What is there already, in `--folder`, is not made
again. Takes about fifteen minutes and 8 GB of memory; nothing else should run meanwhile. The report is kept as JSON in
tests/benchmarks/records/.

`--record FILE` only prints the tables of a recorded report.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from catp.calibration.benchmark.contenders.subject import OURS
from catp.calibration.benchmark.kernel_times import KINDS, KernelTimes
from catp.calibration.benchmark.results.report import BenchmarkReport, read_report
from catp.calibration.benchmark.timing.intervals import Ratio

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "tests" / "benchmarks" / "records" / "mid-size.json"
BUNDLES = {OURS: "fp32", "int8": "int8", "int8-int4": "int8, decode steps int4"}
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
QUANTISED = {
    "int8": ["--to", "int8"],
    "int8-int4": ["--to", "int8", "--decode", "int4", "--block-size", "256"],
}
# Random weights have no accuracy to lose: whatever it costs is within the budget.
CALIBRATION = ["--for", "cpu", "--samples", "16", "--questions", "2", "--min-kept-overlap", "0", "--no-sensitivity"]


def prepare(folder: Path) -> None:
    """Checkpoint and bundles in `folder`, as far as they are not there."""
    bundle = folder / "fp32" / "bundle"
    if not bundle.is_dir():
        call("bench", "--synthetic", "mid", "--keep", folder / "fp32", "--iterations", 1, "--warmup", 0, "--ratios", 0)
    for name, format in QUANTISED.items():
        if not (folder / name).is_dir():
            call("calibrate", "precision", bundle, *format, *CALIBRATION, "-o", folder / name)


def time_all(folder: Path, iterations: int, output: Path) -> None:
    """Time bundles and runtimes in the same rounds."""
    against = ",".join([*(str(folder / name) for name in QUANTISED), *RUNTIMES])
    output.parent.mkdir(parents=True, exist_ok=True)
    call(
        "bench", folder / "fp32" / "bundle", "--checkpoint", folder / "fp32" / "synthetic-mid", "--against", against,
        "--ratios", "0,0.5", "--batch", 1, "--iterations", iterations, "--warmup", 3, "--kernels", "-o", output,
    )  # fmt: skip


def call(command: str, *arguments: object) -> None:
    """Run catp-`command` in a process of its own, which takes its memory along when it ends."""
    code = f"from catp.calibration.commands.{command} import app; app()"
    # Weights of hundreds of megabytes are read in every step: with small pages, looking them up takes a few percent.
    environment = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, env=environment)


def latency_rows(report: BenchmarkReport) -> list[str]:
    """Medians in milliseconds, a line of Markdown each."""
    rows = ["| ms | ratio | " + " | ".join(STAGES.values()) + " |", "|---" * (2 + len(STAGES)) + "|"]
    for result in report.results:
        name = BUNDLES.get(result.subject) or RUNTIMES[result.subject]
        cells = [f"{result.milliseconds[stage].p50:.1f}" for stage in STAGES]
        ratio = f"{result.ratio:g}" if result.subject in BUNDLES else ""
        rows.append(f"| {name} | {ratio} | {' | '.join(cells)} |")
    return rows


def ratio_rows(report: BenchmarkReport) -> list[str]:
    """How many times as fast end to end, with 95 % intervals, a line of Markdown each."""
    headings = ["times as fast as", "ratio", "itself unpruned", "fp32 at that ratio", *RUNTIMES.values()]
    rows = [f"| {' | '.join(headings)} |", "|---" * len(headings) + "|"]
    found = {(s.subject, s.ratio, s.baseline, s.baseline_ratio): s.by_stage["total"] for s in report.speedups}
    for subject, name in BUNDLES.items():
        for ratio in report.setup.ratios:
            baselines = [(subject, 0.0), (OURS, ratio), *((runtime, 0.0) for runtime in RUNTIMES)]
            cells = [_cell(found.get((subject, ratio, *baseline))) for baseline in baselines]
            rows.append(f"| {name} | {ratio:g} | {' | '.join(cells)} |")
    return rows


def precision_rows(report: BenchmarkReport) -> list[str]:
    """What INT8 and INT4 gain over fp32, unpruned, stage by stage, a line of Markdown each."""
    rows = [f"| times as fast as fp32 | {' | '.join(STAGES.values())} |", "|---" * (1 + len(STAGES)) + "|"]
    for found in report.speedups:
        if found.subject in QUANTISED and found.baseline == OURS and found.ratio == 0:
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
    return f"| {BUNDLES[found.subject]} | {found.ratio:g} | {' | '.join(cells)} |"


def _cell(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    low, high = ratio.interval_95 or (float("nan"), float("nan"))
    return f"{ratio.median:.2f} ({low:.2f} to {high:.2f})"


def main(
    folder: Annotated[Path, typer.Option(help="Where checkpoint and bundles are kept.")] = Path("build/mid-size"),
    iterations: Annotated[int, typer.Option(min=1, help="Rounds.")] = 30,
    record: Annotated[Path | None, typer.Option(help="Print the tables of this report, and time nothing.")] = None,
) -> None:
    """Make the latency tables of docs/benchmark.md."""
    if record is None:
        prepare(folder)
        time_all(folder, iterations, RECORD)
    report = read_report(record or RECORD)
    tables = [rows(report) for rows in (latency_rows, ratio_rows, precision_rows, kernel_rows)]
    print("\n\n".join("\n".join(table) for table in tables))


if __name__ == "__main__":
    typer.run(main)
