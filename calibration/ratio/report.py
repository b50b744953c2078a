"""The findings of catp-calibrate ratio, as JSON and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from catp.calibration.ratio.search import Drop, MeasuredHalf


@dataclass(frozen=True)
class LearnedWeights:
    """Weights of the cross-attention layers for catp, and what they are worth on images they were not learned from."""

    ratio: float
    learned: tuple[float, ...]
    accuracy: float  # with them, of 1
    default_accuracy: float  # with equal weights
    gain_95: tuple[float, float]  # interval of the difference

    def __str__(self) -> str:
        listed = ",".join(f"{weight:g}" for weight in self.learned)
        better = self.gain_95[0] > 0
        advice = f"to use them: catp-export --layer-weights {listed}" if better else "not clearly better, so left out"
        return (
            f"Layer weights {listed} learned for catp at ratio {self.ratio:g}: {100 * self.accuracy:.1f} % on the "
            f"other half, {100 * self.default_accuracy:.1f} % with equal ones; {advice}"
        )


@dataclass(frozen=True)
class RatioReport:
    """The whole of it; what is None was not reached."""

    model: str
    data: str
    metric: str
    seed: int
    max_accuracy_drop: float
    search: MeasuredHalf
    chosen: Drop | None = None
    confirmation: Drop | None = None
    layer_weights: LearnedWeights | None = None

    @property
    def is_confirmed(self) -> bool:
        return self.confirmation is not None and self.confirmation.is_within(self.max_accuracy_drop)

    def to_dict(self) -> dict[str, Any]:
        return {"schema_version": 1, **asdict(self), "confirmed": self.is_confirmed}


def points(difference: float) -> str:
    """A loss of accuracy in points; a gain is negative."""
    return f"{-100 * difference:.2f}".replace("-0.00", "0.00")


def search_table(measured: MeasuredHalf, ratios: Sequence[float], methods: Sequence[str], budget: float) -> Table:
    """The loss of every method at every ratio, and in brackets the one that can't be excluded."""
    table = Table(
        title=f"Points lost (at most so many with 95 % confidence), of {100 * measured.full_accuracy:.1f} % unpruned; "
        f"{measured.questions:,} questions",
        title_justify="left",
    )
    table.add_column("ratio", justify="right")
    for method in methods:
        table.add_column(method, justify="right")
    drops = {(drop.setting.method, drop.setting.ratio): drop for drop in measured.drops}
    for ratio in ratios:
        cells = []
        for method in methods:
            drop = drops[method, ratio]
            text = f"{points(drop.difference)} ({points(drop.low)})"
            cells.append(f"[green]{text}[/]" if drop.is_within(budget) else text)
        table.add_row(f"{ratio:g}", *cells)
    return table
