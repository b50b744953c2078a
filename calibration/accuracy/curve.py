"""The picture of a report: accuracy against pruning ratio."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from catp.calibration.accuracy.report import AccuracyReport, Score
from catp.calibration.accuracy.settings import RANDOM
from catp.runtime.bundle.manifest import Positions

PANEL, LEGEND = (5.2, 4.8), 1.8
"""Size of a panel and width of the legend in inches."""
DPI = 150

# Okabe and Ito's colours, which colour-blind readers tell apart; markers do where colours are not printed.
STYLES = (
    ("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "^"), ("#CC79A7", "D"), ("#E69F00", "v"), ("#56B4E9", "P"),
)  # fmt: skip
RANDOM_STYLE = ("#6A6A6A", "x")


def draw_curve(report: AccuracyReport, path: Path) -> None:
    """Write a PNG with one panel per position mode, one line with its 95 % band per method.

    Settings with a share of the votes are points without a line, where the mean number of tokens they keep puts them.

    Raises:
        OSError: it can't be written.
    """
    # A user's matplotlibrc (LaTeX, dark styles) must not decide whether the labels can be read.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        modes = report.evaluation.positions
        figure = Figure(figsize=(PANEL[0] * len(modes) + LEGEND, PANEL[1]), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
        for panel, mode in zip(panels, modes):
            _draw_panel(panel, report, mode)
        panels[0].set_ylabel(f"{report.evaluation.metric}, %")
        lines, labels = panels[0].get_legend_handles_labels()
        figure.legend(lines, labels, frameon=False, loc="outside right center")
        title = f"{report.model.id}, {report.questions:,} questions of {report.evaluation.data} (95 % intervals)"
        figure.suptitle(title, fontsize="large", parse_math=False)
        figure.savefig(path, format="png")


def _draw_panel(panel: Axes, report: AccuracyReport, mode: Positions) -> None:
    tokens = report.num_query_tokens
    styles = iter(STYLES * (1 + len(report.evaluation.methods) // len(STYLES)))
    for method in report.evaluation.methods:
        color, marker = RANDOM_STYLE if method == RANDOM else next(styles)
        scores = [score for score in report.scores if (score.method, score.positions) == (method, mode)]
        line = sorted((score for score in scores if score.ratio is not None), key=lambda score: score.ratio or 0.0)
        x = [score.ratio or 0.0 for score in line]
        y, low, high = _percent(line)
        panel.plot(x, y, color=color, marker=marker, markersize=5, linewidth=1.6, label=method)
        panel.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
        by_mass = [score for score in scores if score.keep_mass is not None]
        if by_mass:
            y, low, high = _percent(by_mass)
            panel.errorbar(
                [1 - score.tokens_kept / tokens for score in by_mass],
                y,
                yerr=np.maximum([y - low, high - y], 0),  # a bootstrap may leave out the mean of few questions
                linestyle="none",
                color=color,
                marker=marker,
                markersize=7,
                markerfacecolor="none",
                capsize=3,
                label=f"{method}, keep mass",
            )
    panel.set_title(f"{mode} positions", fontsize="medium")
    panel.set_xlabel("pruning ratio (fraction of query tokens removed)")
    panel.grid(alpha=0.3)
    panel.spines["right"].set_visible(False)
    kept = panel.secondary_xaxis(
        "top", functions=(lambda x: tokens * (1 - np.asarray(x)), lambda x: 1 - np.asarray(x) / tokens)
    )
    kept.set_xlabel(f"query tokens kept, of {tokens}")
    kept.xaxis.set_major_locator(MaxNLocator(integer=True))


def _percent(scores: list[Score]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy and the ends of its interval, [scores] each."""
    rows = np.array([(score.accuracy, *score.interval_95) for score in scores]).reshape(-1, 3)
    accuracy, low, high = 100 * rows.T
    return accuracy, low, high
