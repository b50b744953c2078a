"""The cost of INT8 on the second demo, with both prunings: `python tests/benchmarks/fine_precision.py`.

The BLIP-2 of 144 patches is exported with a dense vision encoder and with ToMe at half of its work, both voting by
`coverage`, and catp-calibrate quantises each to INT8, and to INT8 with INT4 decode steps: ranges are observed through
the pruned chain. Ten minutes. The reports are kept as JSON in export/demo/fine/accuracy/precision/; `--record FOLDER`
only prints the table of those there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from mid_size import INT8, ROOT, call

from catp.calibration.precision.report import PrecisionReport
from catp.export.demo import fine

RECORDS = ROOT / "export" / "demo" / "fine" / "accuracy" / "precision"
ENCODERS = {"dense": (), "tome": ("--encoder-pruning", "tome", "--encoder-flops", 0.5)}
FORMATS = {"int8": INT8, "int8-int4": [*INT8, "--decode", "int4"]}
NAMES = {"dense": "dense", "tome": "ToMe at 50 %", "int8": "int8", "int8-int4": "int8, decode steps int4"}


def measure(folder: Path, questions: int, output: Path) -> None:
    """Export and calibrate, as far as bundles are not there."""
    output.mkdir(parents=True, exist_ok=True)
    for encoder, options in ENCODERS.items():
        if not (folder / encoder).is_dir():
            vote = ("--method", "coverage", "-o", folder / encoder)
            call("export", "--model", fine.CHECKPOINT, *options, *vote, package="export")
        for name, words in FORMATS.items():
            report = output / f"{encoder}-{name}.json"
            if not report.is_file():
                asked = ("--for", "cpu", "--questions", questions, "--no-sensitivity", "--report", report)
                call("calibrate", "precision", folder / encoder, *words, *asked, "-o", folder / f"{encoder}-{name}")


def table(records: Path) -> list[str]:
    """Markdown: exact match in % with the paired interval of its change, as docs/precision.md has it elsewhere."""
    head = ["vision encoder", "matrix products", "all tokens", "ratio 0.5", "kept tokens alike", "patches alike"]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for encoder in ENCODERS:
        for name in FORMATS:
            report = PrecisionReport.model_validate_json((records / f"{encoder}-{name}.json").read_text())
            found = report.calibration
            assert report.confirmed and found is not None
            cells = [
                "{:.1f} ({:+.1f} to {:+.1f})".format(*(100 * x for x in (change.after, *change.interval_95)))
                for change in found.accuracy
            ]
            patches = "" if found.patch_overlap is None else f"{100 * found.patch_overlap:.1f}"
            alike = [f"{100 * found.kept_overlap:.1f}", patches]
            rows.append(f"| {' | '.join([NAMES[encoder], NAMES[name], *cells, *alike])} |")
    return rows


def main(
    folder: Annotated[Path, typer.Option(help="Where bundles are kept.")] = Path("build/fine-precision"),
    questions: Annotated[int, typer.Option(min=1)] = 1000,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the reports.")] = RECORDS,
    record: Annotated[Path | None, typer.Option(help="Print the table of its reports, and calibrate nothing.")] = None,
) -> None:
    """Calibrate both bundles to both formats."""
    if record is None:
        measure(folder, questions, output)
    print("\n".join(table(record or output)))


if __name__ == "__main__":
    typer.run(main)
