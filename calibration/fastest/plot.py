"""The picture of a report: accuracy against the time of an answer, with the Pareto front."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from catp.calibration.fastest.report import Candidate, FastestReport

SIZE = (8.4, 5.4)
"""In inches."""
DPI = 150
# Okabe and Ito's colours, which colour-blind readers tell apart; markers do where colours are not printed.
STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
)  # fmt: skip


def draw_front(report: FastestReport, path: Path) -> None:
    """Write a PNG: a point for each candidate that was timed, its label the ratio; the front as a line; the budget.

    Times have the interval of their ratio to the unpruned bundle, accuracies that of their difference to it.

    Raises:
        OSError: it can't be written.
    """
    # A user's matplotlibrc (LaTeX, dark styles) must not decide whether the labels can be read.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        panel = figure.subplots()
        _draw(panel, report)
        lines, labels = panel.get_legend_handles_labels()
        figure.legend(lines, labels, frameon=False, loc="outside right center", fontsize="small")
        timing, model = report.timing, next(iter(report.bundles.values())).model.id
        how = "" if timing is None else f", {timing.threads} threads, {timing.rounds} rounds"
        title = (
            f"{model}, {report.asked.questions:,} questions of {report.asked.data}; {report.machine.cpu}{how} "
            "(95 % intervals)"
        )
        figure.suptitle(title, fontsize="small", parse_math=False, wrap=True)
        figure.savefig(path, format="png")


def _draw(panel: Axes, report: FastestReport) -> None:
    timed = [(place, found) for place, found in enumerate(report.candidates) if found.median_ms is not None]
    first = report.first
    front = sorted((found.median_ms or 0.0, found.accuracy) for _, found in timed if found.on_front)
    panel.plot(
        [ms for ms, _ in front],
        [100 * accuracy for _, accuracy in front],
        color="#6A6A6A",
        linewidth=1.0,
        drawstyle="steps-post",
        label="Pareto front",
        zorder=1,
    )
    panel.axhline(
        100 * (first.accuracy - report.max_accuracy_drop), color="#6A6A6A", linestyle=":", label="budget", zorder=1
    )
    groups = dict.fromkeys((found.triple.bundle, found.triple.encoder) for _, found in timed)
    for (bundle, encoder), (color, marker) in zip(groups, STYLES * (1 + len(groups) // len(STYLES))):
        mine = [
            (place, found) for place, found in timed if (found.triple.bundle, found.triple.encoder) == (bundle, encoder)
        ]
        _draw_group(
            panel,
            [found for _, found in mine],
            first,
            bundle if encoder == "dense" else f"{bundle}, encoder {encoder}",
            color,
            marker,
        )
        for place, found in mine:
            if place == report.chosen:
                panel.plot(
                    [found.median_ms or 0.0], [100 * found.accuracy], "o", markersize=15, markerfacecolor="none",
                    markeredgecolor="black", label="chosen",
                )  # fmt: skip
    panel.set_xlabel("median time of an answer, ms")
    panel.set_ylabel(f"{report.asked.metric}, %")
    panel.grid(alpha=0.3)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _draw_group(panel: Axes, of_group: list[Candidate], first: Candidate, label: str, color: str, marker: str) -> None:
    x = np.array([found.median_ms or 0.0 for found in of_group])
    y = np.array([found.accuracy for found in of_group])
    around = []
    for found in of_group:
        fast = found.speedup.interval_95 if found.speedup is not None else None
        base = first.median_ms or 0.0
        ms = (base / fast[1], base / fast[0]) if fast is not None else (found.median_ms or 0.0,) * 2
        around.append((*ms, *(first.accuracy + end for end in found.interval_95)))
    left, right, low, high = np.array(around).T
    panel.errorbar(
        x,
        100 * y,
        xerr=np.maximum([x - left, right - x], 0),  # ratios' intervals need not hold the quotient of medians
        yerr=100 * np.maximum([y - low, high - y], 0),
        linestyle="none",
        color=color,
        marker=marker,
        markersize=5,
        elinewidth=0.8,
        capsize=2,
        label=label,
        zorder=2,
    )
    for found, left_of, height in zip(of_group, x, y):
        if found.triple.ratio is not None:
            panel.annotate(
                f"{found.triple.ratio:g}", (left_of, 100 * height), xytext=(5, 4), textcoords="offset points",
                fontsize="x-small", color=color,
            )  # fmt: skip
