"""A report on an encoder's settings as a table on the screen."""

from __future__ import annotations

from rich.table import Table

from catp.calibration.encoder.report import EncoderReport


def score_table(report: EncoderReport) -> Table:
    """One row for each setting."""
    what = f"{report.metric[0].upper()}{report.metric[1:]}, {report.questions:,} questions of {report.data}"
    table = Table(title=f"{what} (95 % interval)", title_justify="left")
    for column in ("vision encoder", "GFLOPs", "of dense", "accuracy", f"minus {report.scores[0].setting.name}"):
        table.add_column(column, justify="left" if column == "vision encoder" else "right")
    for number, found in enumerate(report.scores):
        low, high = found.interval_95
        accuracy = f"{100 * found.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        low, high = found.difference_95
        difference = f"{100 * found.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})" if number else ""
        table.add_row(found.setting.name, f"{found.gflops:.4g}", f"{found.share:.0%}", accuracy, difference)
    return table
