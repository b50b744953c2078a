"""What both prunings gain in time, end to end: `python tests/benchmarks/both_speed.py`.

A model of middle size (12 layers of 768 in each part, random weights) is exported with a dense vision encoder and with
one that prunes; catp-bench times every schedule with every ratio in the rounds of the dense one. Nothing else should
run meanwhile. The report is kept as JSON in tests/benchmarks/records/; `--record FILE` only prints the table of one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mid_size import OURS, ROOT, RULE, call, encoder_rows

from catp.calibration.benchmark.results.report import read_report

RECORD = ROOT / "tests" / "benchmarks" / "records" / "both-prunings-speed.json"
SHARES = "0.5,0.22"
TWINS = {OURS: "dense"}


def main(
    folder: Annotated[Path, typer.Option(help="Where checkpoint and bundles are kept.")] = Path("build/mid"),
    iterations: Annotated[int, typer.Option(min=6, help="Rounds.")] = 20,
    output: Annotated[Path, typer.Option("-o", "--output", help="The report.")] = RECORD,
    record: Annotated[Path | None, typer.Option(help="Print the table of this report, and time nothing.")] = None,
) -> None:
    """Time both prunings beside a dense encoder with every query token."""
    if record is None:
        schedules = ["--encoder-flops", SHARES, "--encoder-pruning", RULE, "--ratios", "0,0.5"]
        call("bench", "--synthetic", "mid", "--keep", folder, *schedules, "--batch", 1, "--iterations", iterations,
             "-o", output)  # fmt: skip
    print("\n".join(encoder_rows(read_report(record or output), TWINS)))


if __name__ == "__main__":
    typer.run(main)
