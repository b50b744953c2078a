"""Progress and tables of catp-eval on the screen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from catp.calibration.accuracy.report import AccuracyReport
from catp.calibration.accuracy.tables import difference_table, score_table, type_table
from catp.runtime.commands.console import console, make_console

NAMED = 3
"""Reasons why questions were skipped that are named."""
WIDTH = 200


@contextmanager
def counted(what: str = "questions") -> Iterator[Callable[[int, int], None]]:
    """A bar for people who wait; what it yields is called with the number of questions done, and of all."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:

        def advance(done: int, total: int) -> None:
            if not progress.task_ids:
                # What an earlier run did says nothing about the speed of this one.
                progress.add_task(what, total=total, completed=done)
            else:
                progress.update(progress.task_ids[0], completed=done)

        yield advance


def wide_console() -> Console:
    """A console for tables: a file has no width that rows would have to be folded to."""
    return console if console.is_terminal else make_console(width=WIDTH)


def show(report: AccuracyReport) -> None:
    wide = wide_console()
    for table in (score_table(report), type_table(report), difference_table(report)):
        if table is not None:
            wide.print(table)
    if report.skipped:
        reasons = list(dict.fromkeys(skipped.reason for skipped in report.skipped_first))
        more = ", ..." if len(reasons) > NAMED else ""
        console.print(
            f"[yellow]warning:[/] {report.skipped:,} of {report.evaluation.questions:,} questions could not be asked "
            f"and count nowhere: {escape('; '.join(reasons[:NAMED]))}{more}",
            soft_wrap=True,
        )
