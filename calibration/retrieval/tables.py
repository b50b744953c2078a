"""A recall report as a table on the screen."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from catp.calibration.benchmark.costs.whole import MADTP_COUNT
from catp.calibration.retrieval.recall import Recall, RecallReport


def recall_table(report: RecallReport) -> Table:
    """A row for each setting."""
    how = f"the best {report.rerank} re-ranked by the matching head" if report.rerank else "by similarity alone"
    title = f"Recall in %, {report.images:,} images and {report.texts:,} texts of {escape(report.data)}, {how} (95 %)"
    notes = [] if report.text_encoder is None else [f"text encoder: {escape(report.text_encoder)}"]
    in_all = all(row.answer_gflops is not None for row in report.settings)
    if in_all:
        notes.append(MADTP_COUNT)
    table = Table(title=title, title_justify="left", caption="\n".join(notes) or None, caption_justify="left")
    ratios = any(row.setting.ratio is not None for row in report.settings)
    shares = any(row.setting.encoder_flops is not None for row in report.settings)
    temperatures = any(row.setting.encoder_temperature is not None for row in report.settings)
    for name, there in (("ratio", ratios), ("encoder", shares), ("temperature", temperatures)):
        if there:
            table.add_column(name, justify="right")
    if work := any(row.encoder_gflops is not None for row in report.settings):
        table.add_column("GFLOPs", justify="right")
    for name in ("in all", "as MADTP") if in_all else ():
        table.add_column(name, justify="right")
    first = report.settings[0]
    for what, side in (("texts", first.texts), ("images", first.images)):
        for recall in side:
            table.add_column(f"{what} at {recall.at}", justify="right")
    table.add_column("mean", justify="right")
    for row in report.settings:
        setting = row.setting
        cells = [f"{setting.ratio:g}" if setting.ratio is not None else "default"] if ratios else []
        cells += [f"{setting.encoder_flops:.0%}" if setting.encoder_flops is not None else "default"] if shares else []
        of_row = setting.encoder_temperature
        cells += [f"{of_row:g}" if of_row is not None else "default"] if temperatures else []
        cells += [f"{row.encoder_gflops:.4g}" if row.encoder_gflops is not None else ""] if work else []
        if row.answer_gflops is not None and in_all:
            cells += [f"{row.answer_gflops:.4g}", f"{row.answer_gflops / 2:.4g}"]
        table.add_row(*cells, *(_cell(recall) for recall in (*row.texts, *row.images)), f"{100 * row.mean:.1f}")
    return table


def _cell(recall: Recall) -> str:
    low, high = recall.interval_95
    return f"{100 * recall.share:.1f} ({100 * low:.1f} to {100 * high:.1f})"
