"""How time and memory grow: `python tests/benchmarks/growth.py`.

The INT8 bundle with INT4 decode steps that `mid_size.py` makes is timed by catp-bench, in a process of its own for each
value of each dimension (of ratios and shares of the encoder in one process, as they share a bundle in memory: their
rounds are interleaved), all others at their usual value: one picture, a prompt of 16 tokens, ten new tokens, half of
the query tokens, a dense encoder, all threads. A line is fitted to the medians of each. Nothing else should run
meanwhile: a quarter of an hour, 3 GB of memory. The record is kept as JSON in tests/benchmarks/records/, the plot in
docs/images/; `--record FILE` only prints the table of one, and `--plot FILE` draws it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import typer
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mid_size import ROOT, call
from pydantic import BaseModel, ConfigDict

from catp.calibration.benchmark.machine import Machine
from catp.calibration.benchmark.results.report import BenchmarkReport, read_report

RECORD = ROOT / "tests" / "benchmarks" / "records" / "growth.json"
PLOT = ROOT / "docs" / "images" / "growth.png"
STAGES = {"vision": "vision", "qformer": "Q-Former and vote", "prefill": "prefill", "decode": "decode"}
TOGETHER = ("--ratios", "--encoder-flops")
USUAL = {"--batch": 1, "--prompt-tokens": 16, "--new-tokens": 10, "--ratios": 0.5}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dimension(_Strict):
    """One thing that grows.

    Args:
        option: of catp-bench.
        values: it takes, in a run each.
    """

    title: str
    option: str
    values: tuple[float, ...]


DIMENSIONS = (
    Dimension(title="pictures in a batch", option="--batch", values=(1, 2, 4, 8, 16, 32)),
    Dimension(title="tokens of the prompt", option="--prompt-tokens", values=(8, 32, 128, 256, 480)),
    Dimension(title="new tokens", option="--new-tokens", values=(1, 4, 16, 64, 256)),
    Dimension(title="ratio of query tokens removed", option="--ratios", values=(0, 0.25, 0.5, 0.75, 0.9)),
    Dimension(title="share of the encoder's work", option="--encoder-flops", values=(0.22, 0.35, 0.5, 0.8)),
    Dimension(title="threads", option="--threads", values=(1, 2)),
)


class Point(_Strict):
    """One run.

    Args:
        milliseconds: medians by stage, of decode of all steps together; `total` is the whole answer.
        peak_bytes: the process's largest resident set, mapped files included.
    """

    value: float
    milliseconds: dict[str, float]
    peak_bytes: int


class Curve(_Strict):
    dimension: Dimension
    points: tuple[Point, ...]

    def line(self) -> tuple[float, float, float]:
        """Least squares of the whole answer over the value: constant and slope in ms, and the worst residual, in %."""
        x = np.array([point.value for point in self.points])
        y = np.array([point.milliseconds["total"] for point in self.points])
        slope, constant = np.polyfit(x, y, 1)
        return float(constant), float(slope), float(100 * np.abs(constant + slope * x - y).max() / y.max())


class Report(_Strict):
    machine: Machine
    model: str
    precision: str
    rounds: int
    noisy: bool
    curves: tuple[Curve, ...]


def measure(bundle: Path, pruned: Path, rounds: int) -> Report:
    curves, report, noisy = [], None, False
    with tempfile.TemporaryDirectory(prefix="catp-growth-") as folder:
        for dimension in DIMENSIONS:
            points: list[Point] = []
            for values in [dimension.values] if dimension.option in TOGETHER else [(one,) for one in dimension.values]:
                file = Path(folder) / "report.json"
                texts = {name: f"{number:g}" for name, number in USUAL.items()}
                texts[dimension.option] = ",".join(f"{value:g}" for value in values)
                chosen = pruned if dimension.option == "--encoder-flops" else bundle
                given = [part for item in texts.items() for part in item]
                call("bench", chosen, *given, "--iterations", rounds, "--warmup", 2, "-o", file)
                report = read_report(file)
                noisy |= report.noisy
                points += [_point(report, dimension.option, value) for value in values]
            curves.append(Curve(dimension=dimension, points=tuple(points)))
    assert report is not None
    return Report(
        machine=report.machine,
        model=report.bundle.model.id,
        precision=report.bundle.precision_label,
        rounds=rounds,
        noisy=noisy,
        curves=tuple(curves),
    )


def _point(report: BenchmarkReport, option: str, value: float) -> Point:
    """The setting of that value, and else the one that prunes: the baseline at ratio 0 is timed beside it."""
    ratio = value if option == "--ratios" else USUAL["--ratios"]
    share = value if option == "--encoder-flops" else None
    found = next(one for one in report.results if (one.ratio, one.encoder_flops) == (ratio, share))
    steps = report.setup.new_tokens - 1
    times = {stage: summary.p50 for stage, summary in found.milliseconds.items() if stage in (*STAGES, "total")}
    times["decode"] = steps * times.get("decode", 0.0)
    return Point(value=value, milliseconds=times, peak_bytes=max(load.peak_bytes for load in report.loads))


def table(report: Report) -> list[str]:
    """Markdown: the line of each curve, and what memory does."""
    head = ["dimension", "values", "whole answer, ms", "line through it, ms", "off by at most", "memory, GB"]
    rows = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for curve in report.curves:
        constant, slope, off = curve.line()
        values = ", ".join(f"{point.value:g}" for point in curve.points)
        times = ", ".join(f"{point.milliseconds['total']:.0f}" for point in curve.points)
        sizes = [f"{point.peak_bytes / 1e9:.2f}" for point in (curve.points[0], curve.points[-1])]
        line = f"{constant:.0f} {'+' if slope >= 0 else '-'} {abs(slope):.3g} each"
        cells = [curve.dimension.title, values, times, line, f"{off:.0f} %", " to ".join(sizes)]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def draw(curves: Sequence[Curve], path: Path) -> None:
    """A panel for each dimension: stages stacked in ms, memory as a line on the right."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(11, 6.4), dpi=110, layout="constrained")
        FigureCanvasAgg(figure)
        colors = ("#0072B2", "#009E73", "#E69F00", "#D55E00")  # Okabe and Ito's
        for panel, curve in zip(figure.subplots(2, 3).flat, curves):
            x = [point.value for point in curve.points]
            stacked = [[point.milliseconds[stage] for point in curve.points] for stage in STAGES]
            panel.stackplot(x, stacked, labels=STAGES.values(), colors=colors, alpha=0.85)
            panel.plot(x, [point.milliseconds["total"] for point in curve.points], "k.-", label="whole answer")
            panel.set(xlabel=curve.dimension.title, ylabel="median, ms", ylim=(0, None), xlim=(min(x), max(x)))
            memory = panel.twinx()
            memory.plot(x, [point.peak_bytes / 1e9 for point in curve.points], "--", color="#666666", label="memory")
            memory.set(ylabel="peak memory, GB", ylim=(0, None))
        handles, labels = panel.get_legend_handles_labels()
        more, names = memory.get_legend_handles_labels()
        figure.legend([*handles, *more], [*labels, *names], ncols=6, frameon=False, loc="outside upper center")
        figure.savefig(path)


def main(
    folder: Annotated[Path, typer.Option(help="What mid_size.py made.")] = Path("build/mid-size"),
    rounds: Annotated[int, typer.Option(min=6)] = 12,
    output: Annotated[Path, typer.Option("-o", "--output", help="The record.")] = RECORD,
    plot: Annotated[Path, typer.Option(help="The plot, as a PNG file.")] = PLOT,
    record: Annotated[Path | None, typer.Option(help="Print the table of this one, and time nothing.")] = None,
) -> None:
    """Time every value of every dimension."""
    if record is None:
        report = measure(folder / "int8-int4", folder / "pruned-int8-int4", rounds)
        output.write_text(report.model_dump_json(indent=1) + "\n")
        draw(report.curves, plot)
        record = output
    print("\n".join(table(Report.model_validate_json(record.read_bytes()))))


if __name__ == "__main__":
    typer.run(main)
