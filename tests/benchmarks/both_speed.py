"""Time that both prunings save, end to end: `python tests/benchmarks/both_speed.py`.

A model of middle size (12 layers of 768 in each part, random weights) is exported with a dense vision encoder and with
one that prunes, and both are calibrated to INT8 with INT4 decode steps; in either precision catp-bench times every
schedule with every ratio in the rounds of the dense one. `--full-size` does so at the sizes of blip2-opt-2.7b instead,
in fp32: an hour, 22 GB of memory, 45 GB of disk. Nothing else should run meanwhile. The reports are kept as JSON in
tests/benchmarks/records/; `--record FOLDER` only prints the tables of those there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mid_size import CALIBRATION, INT8_INT4, OURS, ROOT, RULE, call, encoder_rows

from catp.calibration.benchmark.results.report import read_report

RECORDS = ROOT / "tests" / "benchmarks" / "records"
REPORTS = {"fp32": "both-prunings-speed.json", "int8, decode steps int4": "both-prunings-speed-int8.json"}
FULL_SIZE = {"fp32": "both-prunings-speed-full.json"}
SHARES, FULL_SHARES = "0.5,0.22", "0.5,0.2"
TWINS = {OURS: "dense"}


def measure(folder: Path, iterations: int, output: Path) -> None:
    """Make what is not there, and time it in both precisions."""
    fp32, int8 = (output / name for name in REPORTS.values())
    settings = ["--encoder-flops", SHARES, "--ratios", "0,0.5", "--batch", 1, "--iterations", iterations]
    call("bench", "--synthetic", "mid", "--keep", folder, "--encoder-pruning", RULE, *settings, "-o", fp32)
    for name in ("bundle", "pruned"):
        if not (folder / f"{name}-int8").is_dir():
            call("calibrate", "precision", folder / name, *CALIBRATION, *INT8_INT4, "-o", folder / f"{name}-int8")
    call("bench", folder / "pruned-int8", "--dense", folder / "bundle-int8", *settings, "-o", int8)


def measure_full(folder: Path, iterations: int, output: Path) -> None:
    """The same at the sizes of blip2-opt-2.7b, in fp32."""
    settings = ["--encoder-flops", FULL_SHARES, "--ratios", "0,0.5", "--batch", 1, "--iterations", iterations]
    settings += ["--warmup", 1, "-o", output / FULL_SIZE["fp32"]]
    if (folder / "pruned").is_dir():
        call("bench", folder / "pruned", "--dense", folder / "bundle", *settings)
    else:
        sizes = ["--synthetic", "blip2-opt-2.7b", "--keep", folder, "--encoder-pruning", RULE]
        call("bench", *sizes, *settings)


def main(
    folder: Annotated[Path, typer.Option(help="Where checkpoint and bundles are kept.")] = Path("build/both-speed"),
    iterations: Annotated[int, typer.Option(min=6, help="Rounds.")] = 40,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the reports.")] = RECORDS,
    full_size: Annotated[
        bool, typer.Option("--full-size", help="blip2-opt-2.7b's sizes in place of middle ones.")
    ] = False,
    record: Annotated[Path | None, typer.Option(help="Print the tables of its reports, and time nothing.")] = None,
) -> None:
    """Time both prunings beside a dense encoder with every query token."""
    if record is None:
        (measure_full if full_size else measure)(folder, iterations, output)
    for reports in (REPORTS, FULL_SIZE):
        rows: list[str] = []
        for precision, name in reports.items():
            table = encoder_rows(read_report((record or output) / name), TWINS, {OURS: precision})
            rows += table[2:] if rows else table
        print("\n".join(rows) + "\n")


if __name__ == "__main__":
    typer.run(main)
