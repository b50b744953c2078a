"""A load's report as a table on the screen."""

from __future__ import annotations

from rich.table import Table

from catp.calibration.benchmark.load.report import Comparison, LoadReport, Measured, Quantiles
from catp.calibration.benchmark.timing.intervals import Ratio


def load_table(report: LoadReport) -> Table:
    """One row for each setting: throughput, times of the first text and between texts, failures."""
    table = Table(
        title=f"{report.max_tokens} tokens at most, {report.requests} requests of each client a round, "
        f"{report.rounds} rounds; milliseconds as median (95 %, 99 %)",
        title_justify="left",
    )
    for column in ("server", "pictures"):
        table.add_column(column)
    for column in ("clients", "tokens/s", "answers/s", "first text", "between texts", "whole", "failed"):
        table.add_column(column, justify="right")
    table.add_column("to one client", justify="right")
    if len(report.servers) > 1:
        table.add_column(f"to {report.servers[0].name}", justify="right")
    before = None
    for one in report.results:
        if before not in (None, (one.setting.server, one.setting.pictures)):
            table.add_section()
        before = one.setting.server, one.setting.pictures
        row = [one.setting.server, one.setting.pictures, one.setting.load]
        row += [f"{one.throughput:.1f}", f"{one.answers:.2f}"]
        row += [_times(one.first_ms), _times(one.gap_ms), _times(one.total_ms), _failures(one)]
        row.append(_ratio(report, one, "clients"))
        if len(report.servers) > 1:
            row.append(_ratio(report, one, "server"))
        table.add_row(*row)
    return table


def _times(found: Quantiles | None) -> str:
    return "" if found is None else f"{found.p50:.1f} ({found.p95:.1f}, {found.p99:.1f})"


def _failures(one: Measured) -> str:
    return ", ".join(f"{count} x {name}" for name, count in one.failures.items())


def _ratio(report: LoadReport, one: Measured, why: str) -> str:
    found: Comparison | None = next((c for c in report.comparisons if c.of == one.setting and c.why == why), None)
    return "" if found is None else ratio_text(found.ratio)


def ratio_text(ratio: Ratio) -> str:
    if ratio.interval_95 is None:
        return f"{ratio.median:.2f}"
    low, high = ratio.interval_95
    return f"{ratio.median:.2f} ({low:.2f} to {high:.2f})"
