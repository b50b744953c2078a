"""The picture of a load: tokens a second and time to the first text, by number of clients."""

from __future__ import annotations

from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from catp.calibration.benchmark.load.report import LoadReport
from catp.calibration.benchmark.results.plot import COLORS, DPI


def draw_load(report: LoadReport, path: Path) -> None:
    """Write a PNG of two panels: a line for each server and kind of pictures.

    Raises:
        OSError: it can't be written.
    """
    # A user's matplotlibrc (LaTeX, dark styles) must not decide whether the labels can be read.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(9, 4), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        speed, first = figure.subplots(1, 2)
        kinds = dict.fromkeys((one.setting.server, one.setting.pictures) for one in report.results)
        for color, kind in zip(COLORS * len(kinds), kinds):
            server, pictures = kind
            of_kind = [one for one in report.results if (one.setting.server, one.setting.pictures) == kind]
            label, style = f"{server}, {pictures} pictures", "-" if pictures == "cached" else "--"
            closed = [one for one in of_kind if one.setting.clients is not None]
            clients = [one.setting.clients or 0 for one in closed]
            speed.plot(clients, [one.throughput for one in closed], style, marker="o", color=color, label=label)
            timed = [(one.setting.clients or 0, one.first_ms) for one in closed if one.first_ms is not None]
            first.plot([n for n, _ in timed], [of.p50 for _, of in timed], style, marker="o", color=color)
            first.fill_between(
                [n for n, _ in timed], [of.p50 for _, of in timed], [of.p95 for _, of in timed], color=color, alpha=0.15
            )
        for panel in (speed, first):
            panel.set_xscale("log", base=2)
            panel.set_xticks(ticks := sorted({one.setting.clients for one in report.results if one.setting.clients}))
            panel.set_xticklabels([str(tick) for tick in ticks])
            panel.set_xlabel("clients")
            panel.set_ylim(bottom=0)
        speed.set_ylabel("tokens a second")
        first.set_ylabel("first text, ms: median, up to 95 %")
        speed.legend(frameon=False, fontsize="small")
        title = f"{report.max_tokens} tokens an answer; {report.machine.cpu}, {report.rounds} rounds"
        figure.suptitle(title, fontsize="small", parse_math=False, wrap=True)
        figure.savefig(path, format="png")
