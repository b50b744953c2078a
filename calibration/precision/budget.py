"""Budgets of a calibration: how much it may cost, shown by how many pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from catp.calibration.accuracy.statistics import images_needed
from catp.calibration.precision.graphs.layers import exclude_options
from catp.calibration.precision.report import PrecisionReport
from catp.runtime.bundle.manifest import AccuracyChange
from catp.runtime.errors import CatpError, UsageError

SAYS_NOTHING = 0.5
"""A loss that an interval has to exclude, of 1: one that reaches so far confirms no budget that does not."""


@dataclass(frozen=True)
class Budget:
    """The largest cost of a calibration.

    Raises:
        UsageError: a number is out of range.
    """

    max_accuracy_drop: float = 0.01  # of 1, at every tested ratio
    min_kept_overlap: float = 0.98  # mean share of kept tokens that stay the same

    def __post_init__(self) -> None:
        if not 0 <= self.max_accuracy_drop < 1:
            raise UsageError(f"max accuracy drop {self.max_accuracy_drop}: of 1, so 0 <= drop < 1, such as 0.01")
        if not 0 <= self.min_kept_overlap <= 1:
            raise UsageError(f"min kept overlap {self.min_kept_overlap}: a share, 0 <= overlap <= 1, such as 0.98")

    def allows(self, accuracy: Sequence[AccuracyChange], kept_overlap: float) -> bool:
        lost = max(-change.difference for change in accuracy)
        # Means have rounding errors: one lost question in a hundred is a drop of 0.01.
        return lost <= self.max_accuracy_drop + 1e-9 and kept_overlap >= self.min_kept_overlap - 1e-9

    def is_shown_by(self, accuracy: Sequence[AccuracyChange]) -> bool:
        """Whether intervals exclude a loss of half of all answers, unless the budget allows that much."""
        return self.max_accuracy_drop >= SAYS_NOTHING or possible_loss(accuracy) <= SAYS_NOTHING + 1e-9

    def check_pictures(self, data: str, questions: int, pictures: int) -> None:
        """Raises UsageError where so few could not confirm anything, even if no answer changed."""
        fewest = images_needed(SAYS_NOTHING)
        if pictures < fewest and self.max_accuracy_drop < SAYS_NOTHING:
            raise UsageError(
                f"data {data}: what is found would be confirmed by {counted(questions, pictures)}, too few to tell it "
                f"from what loses half of the answers; give at least {fewest} pictures in each half, "
                f"and --questions {fewest} or more{self._enough(pictures)}"
            )

    def doubts(self, accuracy: Sequence[AccuracyChange], questions: int, pictures: int) -> str | None:
        """Doubts that so many pictures leave, in words; None where the interval is within the budget."""
        lost = possible_loss(accuracy)
        if lost <= self.max_accuracy_drop + 1e-9:
            return None
        return (
            f"{counted(questions, pictures)} leave open whether it costs up to {100 * lost:.1f} points (95 % "
            f"confidence), more than the {100 * self.max_accuracy_drop:g} that it may; ask about more pictures "
            f"(--questions, --data){self._enough(pictures)}"
        )

    def _enough(self, pictures: int) -> str:
        """How many pictures could show that the budget is kept, where these could not."""
        if not self.max_accuracy_drop or (enough := images_needed(self.max_accuracy_drop)) <= pictures:
            return ""
        return f": {enough} of which none loses an answer show that it costs at most {100 * self.max_accuracy_drop:g}"


class BudgetExceeded(CatpError):
    """Calibration costs more than it may, or was not shown to cost less; `report` says what was found."""

    def __init__(self, reason: str, report: PrecisionReport, others: str = "") -> None:
        super().__init__(
            f"{reason}; nothing was published. Give a larger --max-accuracy-drop or a smaller --min-kept-overlap, "
            f"leave graphs out{others}, or ask about more pictures where few decide (--questions, --data)"
        )
        self.report = report


def most_sensitive(report: PrecisionReport, count: int = 3) -> str:
    """How to leave out the layers that suffer most of those that were quantised; nothing where none was measured."""
    names = [f"{error.graph}: {error.layer}" for error in report.errors]
    left = [name for name in names if name not in report.kept][:count]
    return f" or more layers ({exclude_options(left)})" if left else ""


def possible_loss(accuracy: Sequence[AccuracyChange]) -> float:
    """The largest loss that an interval includes, of 1."""
    return max(-change.interval_95[0] for change in accuracy)


def counted(questions: int, pictures: int) -> str:
    """In words."""
    return f"{questions} question{'s' * (questions != 1)} about {pictures} picture{'s' * (pictures != 1)}"
