"""The measurements of catp-calibrate provider as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from catp.calibration.placement.search import Measured


def placement_table(measured: Sequence[Measured]) -> Table:
    """A row for each graph in each place, the CPU's provider as the measure."""
    table = Table("graph", "provider", "median ms", "of the CPU provider's time (95 %)", "")
    for found in measured:
        ratio = "1"
        if found.ratio is not None:
            low, high = found.ratio.interval_95 or (float("nan"), float("nan"))
            ratio = f"{found.ratio.median:.2f} ({low:.2f} to {high:.2f})"
        outcome = "chosen" if found.chosen else found.refused or ""
        table.add_row(found.graph, found.place.label, f"{found.milliseconds:.2f}", ratio, outcome)
    return table
