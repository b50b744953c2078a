"""The picture of a report: where the time of an answer goes, at each ratio."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from catp.calibration.benchmark.contenders.subject import OURS, STAGES, prunes
from catp.calibration.benchmark.results.report import BenchmarkReport, Result
from catp.calibration.benchmark.results.tables import TITLES

PANEL, LEGEND, BAR = (4.6, 4.6), 1.9, 0.5
"""Least size of a panel, width of the legend, and least width that a bar takes, in inches."""
DPI = 150
# Okabe and Ito's colours, which colour-blind readers tell apart.
COLORS = ("#56B4E9", "#0072B2", "#009E73", "#E69F00", "#D55E00", "#999999")
STAGE_COLORS = {
    "preprocess": "#56B4E9",
    "vision": "#0072B2",
    "qformer": "#009E73",
    "image": "#CC79A7",
    "text": "#F0E442",
    "match": "#D55E00",
    "prefill": "#E69F00",
    "decode": "#D55E00",  # no answer has it and a match
    "host": "#999999",
}


def draw_latency(report: BenchmarkReport, path: Path) -> None:
    """Write a PNG with one panel per batch size: medians of all stages stacked, a bar for each ratio and contender.

    Raises:
        OSError: it can't be written.
    """
    # A user's matplotlibrc (LaTeX, dark styles) must not decide whether the labels can be read.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        batches = report.setup.batches
        width = max(PANEL[0], BAR * len(report.results) / len(batches)) * len(batches) + LEGEND
        figure = Figure(figsize=(width, PANEL[1]), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(batches), squeeze=False)[0]
        for panel, batch in zip(panels, batches):
            _draw_panel(panel, [result for result in report.results if result.batch == batch])
            panel.set_title(f"batch {batch}", fontsize="medium")
        panels[0].set_ylabel("median, ms")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], frameon=False, loc="outside right center")
        texts = report.setup.texts
        asked = f"{report.setup.new_tokens} new tokens" if texts is None else f"texts of a request: {texts}"
        noisy = ", noisy" if report.noisy else ""
        title = (
            f"{report.bundle.model.id}, {report.bundle.precision_label}; {asked}; "
            f"{report.machine.cpu}, {report.setup.threads} threads, {report.rounds} rounds{noisy}"
        )
        figure.suptitle(title, fontsize="small", parse_math=False, wrap=True)
        figure.savefig(path, format="png")


def _draw_panel(panel: Axes, results: list[Result]) -> None:
    places = np.arange(len(results))
    bottom = np.zeros(len(results))
    for stage in (stage for stage in STAGES if any(stage in result.milliseconds for result in results)):
        heights = np.array([_height(result, stage) for result in results])
        label = "decode, all tokens" if stage == "decode" else TITLES[stage]
        panel.bar(places, heights, bottom=bottom, color=STAGE_COLORS[stage], label=label, width=0.7)
        bottom += heights
    totals = [result.milliseconds["total"] for result in results]
    spread = [[t.p50 - t.min for t in totals], [(t.p90 or t.p50) - t.p50 for t in totals]]
    medians = [t.p50 for t in totals]
    panel.errorbar(places, medians, spread, linestyle="none", color="black", capsize=3, label="total, min to p90")
    names = [_name(result) for result in results]
    panel.set_xticks(places, names, rotation=30, ha="right", fontsize="small", parse_math=False)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _name(result: Result) -> str:
    encoder = "" if result.encoder_flops is None else f"encoder {100 * result.encoder_flops:g} %, "
    ratio = f"{encoder}ratio {result.ratio:g}"
    if result.subject == OURS:
        return ratio
    return f"{result.subject}, {ratio}" if prunes(result.subject) else result.subject


def _height(result: Result, stage: str) -> float:
    if stage not in result.milliseconds:
        return 0.0
    steps = len(result.token_ids[0]) - 1 if stage == "decode" else 1
    return steps * result.milliseconds[stage].p50
