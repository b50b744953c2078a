"""A report as tables on the screen."""

from __future__ import annotations

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from catp.calibration.accuracy.report import BASELINES, AccuracyReport, Difference, Loss, Score, Share
from catp.calibration.significance.comparisons import LEVEL, describe_p
from catp.runtime.bundle.manifest import Positions


def score_table(report: AccuracyReport) -> Table:
    """Accuracy of every method at every ratio, position modes side by side."""
    evaluation = report.evaluation
    several = len(evaluation.methods) > 1
    what = evaluation.metric[0].upper() + evaluation.metric[1:] + ("" if several else f", {evaluation.methods[0]}")
    title = f"{what}, {report.questions:,} questions of {escape(evaluation.data)} (95 % interval)"
    table = Table(title=title, title_justify="left")
    if several:
        table.add_column("method")
    table.add_column("ratio", justify="right")
    table.add_column("tokens kept", justify="right")
    for mode in evaluation.positions:
        table.add_column(f"{mode} positions", justify="right")
    described = report.scores[0].cider is not None  # of captions, which have no positions to choose
    if described:
        table.add_column("CIDEr-D", justify="right")
    section = None
    for row in _rows(report):
        first = row[0]
        if several and section != _amount(first):
            table.add_section()
        section = _amount(first)
        kept = f"{first.tokens_kept:g}" if first.ratio is not None else f"{first.tokens_kept:.1f}"
        method = [_method(report, first)] if several else []
        cider = [_cider(first)] if described else []
        table.add_row(*method, _amount(first), kept, *(_accuracy(score) for score in row), *cider)
    return table


def type_table(report: AccuracyReport) -> Table | None:
    """Accuracy by answer type; None where there is but one."""
    kinds = {kind: share.questions for kind, share in report.scores[0].by_answer_type.items()}
    if len(kinds) == 1:
        return None
    table = Table(title="By type of answer, in % (95 % interval)", title_justify="left")
    for column in ("method", "ratio", "positions"):
        table.add_column(column, justify="right" if column == "ratio" else "left")
    for kind, questions in kinds.items():
        table.add_column(f"{escape(kind)} ({questions:,})", justify="right")
    for row in _rows(report):
        for score in row[:1] if report.is_full(row[0]) else row:
            positions = "any" if report.is_full(score) else score.positions
            shares = [_accuracy(score.by_answer_type[kind], unit="") for kind in kinds]
            table.add_row(_method(report, score), _amount(score), positions, *shares)
    return table


def difference_table(report: AccuracyReport) -> Table | None:
    """Every setting against the lowest ratio, and every method against the baselines; None without any comparison."""
    if not report.comparisons:
        return None
    table = Table(
        title="Paired differences in percentage points (95 % interval)",
        title_justify="left",
        caption=f"none: no difference shown, as p is not below {LEVEL:g}; by {report.test}, p corrected for "
        f"{report.comparisons} comparisons by Holm.",
        caption_justify="left",
    )
    lowest = [f"ratio {report.losses[0].against_ratio:g}"] if report.losses else []
    against = [*lowest, *(name for name in BASELINES if name in {found.against for found in report.differences})]
    for column in ("method", "ratio", "positions"):
        table.add_column(column, justify="right" if column == "ratio" else "left")
    for name in against:
        table.add_column(f"minus {name}", justify="right")
    cells: dict[tuple[str, Positions], dict[str, dict[str, Difference | Loss]]] = {}
    for score in report.scores:
        cells.setdefault((_amount(score), score.positions), {})[score.method] = {}
    for loss in report.losses:
        cells[_amount(loss), loss.positions][loss.method][lowest[0]] = loss
    for found in report.differences:
        cells[_amount(found), found.positions][found.method][found.against] = found
    for (amount, positions), rows in cells.items():
        table.add_section()
        for method, row in rows.items():
            if row:
                table.add_row(method, amount, positions, *(_difference(row.get(name)) for name in against))
    return table


def _rows(report: AccuracyReport) -> Iterable[list[Score]]:
    """Scores that differ in positions only; where all tokens are kept, all methods have one row."""
    rows: dict[tuple[float | None, float | None, str], list[Score]] = {}
    for score in report.scores:
        rows.setdefault((score.ratio, score.keep_mass, _method(report, score)), []).append(score)
    return [row[: len(report.evaluation.positions)] for row in rows.values()]


def _method(report: AccuracyReport, score: Score) -> str:
    return "any" if score.ratio is not None and report.is_full(score) else score.method


def _amount(found: Score | Loss | Difference) -> str:
    if found.ratio is not None:
        return f"{found.ratio:g}"
    assert not isinstance(found, Difference)
    return f"mass {found.keep_mass:g}"


def _accuracy(share: Share, unit: str = " %") -> str:
    low, high = share.interval_95
    return f"{100 * share.accuracy:.1f}{unit} ({100 * low:.1f} to {100 * high:.1f})"


def _cider(score: Score) -> str:
    assert score.cider is not None and score.cider_interval_95 is not None
    low, high = score.cider_interval_95
    return f"{score.cider:.1f} ({low:.1f} to {high:.1f})"


def _difference(found: Difference | Loss | None) -> str:
    if found is None or found.p_corrected is None:
        return ""
    low, high = found.interval_95
    text = f"{100 * found.difference:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    if found.finding != "difference shown":
        return f"{text}, none ({describe_p(found.p_corrected)})"
    return f"[{'green' if found.difference > 0 else 'red'}]{text}, {describe_p(found.p_corrected)}[/]"
