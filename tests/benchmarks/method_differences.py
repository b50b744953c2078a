"""The tables of voting methods' differences in docs/accuracy.md: `python tests/benchmarks/method_differences.py`.

Nothing is measured: they are of the report that `catp-eval` wrote beside the demo, which says how it was made.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from catp.calibration.accuracy.report import AccuracyReport, Difference, Loss

RECORD = Path(__file__).parents[2] / "export" / "demo" / "accuracy" / "seed-0.json"


def table_rows(report: AccuracyReport, against: str) -> list[str]:
    """Lines of Markdown: percentage points by ratio, original / compact positions; none where no difference is shown.

    Args:
        against: ratio 0, or a method.
    """
    compared: list[Difference | Loss] = [*report.losses] if against == "ratio 0" else []
    compared += [found for found in report.differences if found.against == against]
    cells = {(found.method, found.ratio, found.positions): found for found in compared}
    ratios = sorted({found.ratio for found in compared if found.ratio is not None})
    rows = [f"| minus {against} | {' | '.join(f'{ratio:g}' for ratio in ratios)} |", "|---" * (1 + len(ratios)) + "|"]
    for method in report.evaluation.methods:
        if (method, ratios[0], "original") in cells:
            row = [[_cell(cells[method, ratio, mode]) for mode in report.evaluation.positions] for ratio in ratios]
            rows.append(f"| {method} | {' | '.join(map(' / '.join, row))} |")
    return rows


def _cell(found: Difference | Loss) -> str:
    return f"{100 * found.difference:+.1f}" if found.finding == "difference shown" else "none"


def main(record: Annotated[Path, typer.Option(help="The report.")] = RECORD) -> None:
    """Print the tables of a report."""
    report = AccuracyReport.model_validate_json(record.read_text())
    print("\n\n".join("\n".join(table_rows(report, against)) for against in ("ratio 0", "random", "catp")))


if __name__ == "__main__":
    typer.run(main)
