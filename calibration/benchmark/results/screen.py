"""A benchmark on the screen: its progress, its tables and its notes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from catp.calibration.benchmark.contenders.subject import Case
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.benchmark.results.tables import (
    break_even_table,
    bundle_table,
    contender_table,
    encoder_table,
    kernel_table,
    latency_table,
    load_table,
    pruning_table,
    roofline_table,
)
from catp.calibration.benchmark.timing.rounds import Rounds
from catp.runtime.commands.console import console, make_console

WIDTH = 240


@contextmanager
def counted(rounds: Rounds) -> Iterator[Callable[[int, Mapping[Case, float]], None]]:
    """A bar for people who wait. It moves between measurements, not while one is being taken."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("rounds", total=1.0)

        def advance(done: int, seconds: Mapping[Case, float]) -> None:
            part = done / rounds.count if rounds.count else min(seconds.values()) / (rounds.min_seconds or 1.0)
            progress.update(task, completed=min(1.0, part), refresh=True)

        yield advance


def show(report: BenchmarkReport) -> None:
    """The measurements; the card of costs was shown before."""
    for table in (
        bundle_table(report),
        load_table(report),
        latency_table(report),
        roofline_table(report),
        kernel_table(report),
        encoder_table(report),
        pruning_table(report),
        break_even_table(report),
        contender_table(report),
    ):
        if table is not None:
            show_table(table)
    load, writes = report.load_average_after, report.setup.texts is None
    host = "Host time counts as before the first token where a runtime does not tell. " if writes else ""
    console.print(
        f"Timed: from pictures in memory to {'token ids' if writes else 'scores'} in host memory; "
        f"{report.setup.clock}; {report.setup.order}. {host}{report.rounds} rounds in "
        f"{report.seconds:.0f} s, load average afterwards {'unknown' if load is None else f'{load:.1f}'}.",
        soft_wrap=True,
    )
    show_notes(report.notes)


def show_notes(notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def show_table(table: Table) -> None:
    # A file has no width that rows would have to be folded to.
    (console if console.is_terminal else make_console(width=WIDTH)).print(table)
