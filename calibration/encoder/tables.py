"""A report on an encoder's settings as a table on the screen."""

from __future__ import annotations

from rich.table import Table

from catp.calibration.encoder.report import EncoderReport, EncoderScore


def score_table(report: EncoderReport, half: str = "", chosen: EncoderScore | None = None) -> Table:
    """One row for each setting.

    Args:
        half: of the images, which the questions are about; named where it is one.
        chosen: whose row stands out.
    """
    what = f"{report.metric[0].upper()}{report.metric[1:]}, {report.questions:,} questions of {report.data}"
    table = Table(title=f"{what}{half and f', {half} half'} (95 % interval)", title_justify="left")
    ratios = any(found.setting.ratio is not None for found in report.scores)
    in_all = any(found.answer_gflops is not None for found in report.scores)
    columns = ["vision encoder", *(["ratio"] if ratios else []), "GFLOPs", "of dense", *(["in all"] if in_all else [])]
    for column in (*columns, "accuracy", f"minus {report.scores[0].setting.name}"):
        table.add_column(column, justify="left" if column == "vision encoder" else "right")
    for number, found in enumerate(report.scores):
        low, high = found.interval_95
        accuracy = f"{100 * found.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})"
        low, high = found.difference_95
        difference = f"{100 * found.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})" if number else ""
        cells = [found.setting.name]
        if ratios:
            cells.append("" if found.setting.ratio is None else f"{found.setting.ratio:g}")
        cells += [f"{found.gflops:.4g}", f"{found.share:.0%}"]
        if in_all:
            cells.append("" if found.answer_gflops is None else f"{found.answer_gflops:.4g}")
        table.add_row(*cells, accuracy, difference, style="bold" if found is chosen else None)
    return table
