"""The findings of a calibration, as tables on the screen."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite

from rich.markup import escape
from rich.table import Table

from catp.calibration.precision.report import GraphSize, PrecisionReport
from catp.runtime.bundle.chains import made_from
from catp.runtime.bundle.manifest import AccuracyChange, GraphSpec

MOST_LAYERS = 10


def change_table(report: PrecisionReport, graphs: Mapping[str, GraphSpec]) -> Table:
    """Size and accuracy, before and after.

    Args:
        graphs: of the bundle that was calibrated.
    """
    found = report.calibration
    assert found is not None and report.graphs is not None
    by = f"Calibrated on {found.samples} samples" if found.samples else "Quantised"
    title = f"{by}, compared on {found.questions:,} questions of {escape(found.data)}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name, size in report.graphs.items():
        stay = sum(layer.startswith(f"{name}: ") for layer in report.kept)
        table.add_row(name, *_size(size, graphs[made_from(name)], stay))
    table.add_section()
    for change in found.accuracy:
        table.add_row(
            f"{found.metric} at ratio {change.ratio:g}",
            f"{100 * change.before:.1f} %",
            f"{100 * change.after:.1f} %",
            _points(change),
        )
    if found.drops_query_tokens:
        table.add_row("kept tokens that stayed the same", "", f"{100 * found.kept_overlap:.1f} %", "")
    if found.patch_overlap is not None:
        table.add_row("patches that the encoder keeps alike", "", f"{100 * found.patch_overlap:.1f} %", "")
    return table


def layer_table(report: PrecisionReport) -> Table | None:
    """The layers that suffer most from being quantised alone; None where that was not measured."""
    if not report.errors:
        return None
    total = len(report.errors)
    table = Table(title=f"Error of single layers, the worst of {total}", title_justify="left")
    for column in ("graph", "layer", "error of the output", "weight", ""):
        numbers = column in ("error of the output", "weight")
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for error in report.errors[:MOST_LAYERS]:
        stays = f"{error.graph}: {error.layer}" in report.kept
        table.add_row(
            error.graph,
            escape(error.layer),
            f"{100 * error.error:.2f} %" if isfinite(error.error) else "no number",
            f"{error.megabytes:,.2f} MB",
            "kept in floating point" if stays else "",
        )
    return table


def trial_table(report: PrecisionReport) -> Table | None:
    """How many layers had to stay; None where the first try was within the budget."""
    if len(report.trials) < 2:
        return None
    table = Table(title="Layers kept in floating point, the most sensitive first", title_justify="left")
    for column in ("kept", "worst change of accuracy", "kept tokens alike", "within the budget"):
        table.add_column(column, justify="right")
    for trial in sorted(report.trials, key=lambda trial: len(trial.kept)):
        worst = min(trial.accuracy, key=lambda change: change.difference)
        fits = "[green]yes[/]" if trial.fits else "no"
        table.add_row(f"{len(trial.kept)}", _points(worst), f"{100 * trial.kept_overlap:.1f} %", fits)
    return table


def _size(size: GraphSize, before: GraphSpec, stay: int) -> tuple[str, str, str]:
    """`stay`: layers that the search keeps in floating point."""
    was = f"{before.precision_label}, {size.before / 1e6:,.1f} MB"
    found = size.quantization
    if found is None:
        return was, "the same", f"all {stay} layers stay in floating point" if stay else ""
    now = f"{found.format}, {size.after / 1e6:,.1f} MB"
    weights = found.bytes_before / max(found.bytes_after, 1)
    tables = f", {found.tables} tables int8" if found.tables else ""
    kept = f", {len(found.kept)} kept" if found.kept else ""
    return was, now, f"{size.before / size.after:.1f}x smaller, {found.layers} matrices {weights:.1f}x{tables}{kept}"


def _points(change: AccuracyChange) -> str:
    low, high = change.interval_95
    return f"{100 * change.difference:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
