"""The tables of docs/accuracy.md that have scenes and easy-vqa side by side: `python tests/benchmarks/two_worlds.py`.

Nothing is measured: they are of the reports that `catp-eval export/demo/fine/checkpoint` wrote beside the second demo.
"""

from __future__ import annotations

from pathlib import Path

from method_differences import table_rows

from catp.calibration.accuracy.report import AccuracyReport
from catp.runtime.bundle.manifest import Positions

FOLDER = Path(__file__).parents[2] / "export" / "demo" / "fine" / "accuracy" / "methods"
WORLDS = {"scenes": "scenes.json", "easy-vqa": "easy-vqa.json"}


def read_worlds() -> dict[str, AccuracyReport]:
    """Reports by the name of what was asked about."""
    return {
        name: AccuracyReport.model_validate_json((FOLDER / file).read_text(encoding="utf-8"))
        for name, file in WORLDS.items()
    }


def accuracy_rows(reports: dict[str, AccuracyReport], positions: Positions) -> list[str]:
    """Lines of Markdown: each method's exact match in %, with its 95 % interval, a line for each world."""
    evaluation = reports["scenes"].evaluation
    ratios = evaluation.ratios
    rows = [f"| {positions} positions | | {' | '.join(f'{ratio:g}' for ratio in ratios)} |"]
    rows += ["|---" * (2 + len(ratios)) + "|"]
    for method in evaluation.methods:
        for world, report in reports.items():
            scores = {
                score.ratio: score
                for score in report.scores
                if score.positions == positions and (score.method == method or score.ratio == 0)
            }
            cells = []
            for ratio in ratios:
                score = scores[ratio]
                low, high = (100 * end for end in score.interval_95)
                cells.append(f"{100 * score.accuracy:.1f} ({low:.1f} to {high:.1f})")
            rows.append(f"| {method} | {world} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    reports = read_worlds()
    print("\n\n".join("\n".join(accuracy_rows(reports, mode)) for mode in reports["scenes"].evaluation.positions))
    for world, report in reports.items():
        for against in ("random", "catp"):
            header, *rows = table_rows(report, against)
            print("\n" + "\n".join([header.replace("| minus", f"| {world}, minus"), *rows]))


if __name__ == "__main__":
    main()
