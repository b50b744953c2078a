"""A report on an encoder's settings as a table on the screen."""

from __future__ import annotations

from rich.table import Table

from catp.calibration.benchmark.costs.whole import MADTP_COUNT
from catp.calibration.encoder.report import EncoderReport, EncoderScore, PairedDifference
from catp.calibration.significance.comparisons import LEVEL, Tested


def score_table(report: EncoderReport, half: str = "", chosen: EncoderScore | None = None) -> Table:
    """One row for each encoder, or for each amount of query tokens after each encoder.

    Args:
        half: of the images, which the questions are about; named where it is one.
        chosen: whose row stands out.
    """
    what = f"{report.metric[0].upper()}{report.metric[1:]}, {report.questions:,} questions of {report.data}"
    first = report.scores[0].setting
    votes = any(found.setting.amount for found in report.scores)
    several = len({found.setting.amount for found in report.scores}) > 1
    grid = any(found.same_encoder for found in report.scores)
    in_all = any(found.answer_gflops is not None for found in report.scores)
    as_madtp = in_all and not votes  # of the models that MADTP prunes
    described = any(found.cider is not None for found in report.scores)
    grid = grid and not half
    paired = ", of differences paired" if votes else ""
    notes = []
    if as_madtp:
        notes.append(MADTP_COUNT)
    if report.comparisons:
        notes.append(
            f"none: no difference shown, as p is not below {LEVEL:g}; by {report.test}, p corrected for "
            f"{report.comparisons} comparisons by Holm."
        )
    table = Table(
        title=f"{what}{half and f', {half} half'} (95 % interval{paired})",
        title_justify="left",
        caption="\n".join(notes) or None,
        caption_justify="left",
    )
    columns = ["vision encoder", "GFLOPs", "of dense", *(["query tokens", "kept"] if votes else [])]
    columns += [*(["in all"] if in_all else []), *(["as MADTP"] if as_madtp else []), "accuracy"]
    columns += ["CIDEr-D"] if described else []
    columns.append("minus first row" if several else f"minus {first.name}")
    columns += [f"minus {first.amount}", f"minus {first.name}"] if grid else []
    for column in columns:
        table.add_column(column, justify="left" if column in ("vision encoder", "query tokens") else "right")
    before = first.name
    for number, found in enumerate(report.scores):
        setting = found.setting
        if several and setting.name != before:
            table.add_section()
        before = setting.name
        low, high = found.interval_95
        row = [setting.name, f"{found.gflops:.4g}", f"{found.share:.0%}"]
        if votes:
            kept = found.tokens_kept or 0.0
            row += [setting.amount, f"{kept:g}" if setting.keep_mass is None else f"{kept:.1f}"]
        if in_all:
            row.append("" if found.answer_gflops is None else f"{found.answer_gflops:.4g}")
        if as_madtp:
            row.append("" if found.answer_gflops is None else f"{found.answer_gflops / 2:.4g}")
        row.append(f"{100 * found.accuracy:.1f} % ({100 * low:.1f} to {100 * high:.1f})")
        if described:
            assert found.cider is not None and found.cider_interval_95 is not None
            row.append("{:.1f} ({:.1f} to {:.1f})".format(found.cider, *found.cider_interval_95))
        row.append(_difference(found.difference, found.difference_95, found) if number else "")
        if grid:
            row += [_paired(found.same_encoder), _paired(found.same_amount)]
        table.add_row(*row, style="bold" if found is chosen else None)
    return table


def _paired(found: PairedDifference | None) -> str:
    return "" if found is None else _difference(found.difference, found.interval_95, found)


def _difference(mean: float, interval: tuple[float, float], tested: Tested) -> str:
    low, high = interval
    none = ", none" if tested.finding == "no difference shown" else ""
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){none}"
