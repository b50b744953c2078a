"""A report of catp-calibrate fastest as a table for people."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from catp.calibration.fastest.report import Candidate, FastestReport
from catp.calibration.fastest.search import FIRST
from catp.calibration.ratio.report import points


def candidate_table(report: FastestReport) -> Table:
    """A row for each triple, those of the Pareto front marked."""
    asked, timing = report.asked, report.timing
    timed = "" if timing is None else f"; {timing.new_tokens} tokens to one picture, {timing.rounds} rounds"
    table = Table(
        title=f"Points lost (at most so many with 95 % confidence), of {100 * report.first.accuracy:.1f} % unpruned; "
        f"{asked.questions:,} questions{timed}",
        title_justify="left",
        caption="*: no other is as fast and as accurate, or better",
        caption_justify="left",
    )
    for column in ("bundle", "encoder", "ratio"):
        table.add_column(column)
    for column in ("tokens", "points lost", "median ms", "times as fast (95 %)"):
        table.add_column(column, justify="right")
    table.add_column("")
    before = report.first.triple.bundle
    for place, found in enumerate(report.candidates):
        triple = found.triple
        if triple.bundle != before:
            table.add_section()
        before = triple.bundle
        lost = "" if place == FIRST else f"{points(found.difference)} ({points(found.low)})"
        table.add_row(
            escape(triple.bundle),
            "dense" if triple.kept_tokens is None else f"{found.encoder_share:.0%}",
            "" if triple.ratio is None else f"{triple.ratio:g}",
            "" if found.tokens_kept is None else f"{found.tokens_kept:g}",
            f"[green]{lost}[/]" if found.within else lost,
            "" if found.median_ms is None else f"{found.median_ms:.2f}{' *' if found.on_front else '  '}",
            _speedup(found),
            _outcome(report, place),
            style="bold" if place == report.chosen else None,
        )
    return table


def _speedup(found: Candidate) -> str:
    if found.speedup is None:
        return ""
    low, high = found.speedup.interval_95 or (float("nan"), float("nan"))
    return f"{found.speedup.median:.2f} ({low:.2f} to {high:.2f})"


def _outcome(report: FastestReport, place: int) -> str:
    if place == report.chosen:
        return "chosen"
    if any(attempt.candidate == place for attempt in report.attempts):
        return "not confirmed"
    if place == FIRST:
        return "unpruned"
    return "" if report.candidates[place].within else "loses too much"
