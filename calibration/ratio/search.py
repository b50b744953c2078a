"""The largest pruning ratio within an accuracy budget: searched on one half of the images, confirmed on the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from catp.calibration.accuracy.answering import Answerer, in_batches
from catp.calibration.accuracy.settings import Setting
from catp.calibration.accuracy.statistics import lowest_difference
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.metrics import Metric
from catp.runtime.errors import CatpError
from catp.runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Drop:
    """The cost of a setting, on the same questions with and without pruning."""

    setting: Setting
    questions: int
    accuracy: float
    difference: float  # to the accuracy of all tokens; negative: pruning costs
    low: float  # lower end of its 95 % interval

    def is_within(self, budget: float) -> bool:
        """Whether pruning costs at most `budget`, of 1, with confidence."""
        return self.low >= -budget


@dataclass(frozen=True)
class MeasuredHalf:
    """All settings on one half."""

    questions: int
    images: int
    skipped: int
    full_accuracy: float
    drops: tuple[Drop, ...]

    def best(self, budget: float) -> Drop | None:
        """The largest ratio within the budget; of several at that ratio the most accurate.

        None as well where no question is answered right without pruning: then nothing can be lost, whatever is pruned.
        """
        if not self.full_accuracy:
            return None
        within = [drop for drop in self.drops if drop.is_within(budget)]
        return max(within, key=lambda drop: (drop.setting.ratio or 0, drop.accuracy), default=None)


def measure(
    pipeline: Pipeline,
    questions: Iterable[VqaExample],
    settings: Sequence[Setting],
    metric: Metric,
    seed: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> MeasuredHalf:
    """Ask every question without pruning and in every setting.

    Args:
        advance: called with the number of questions just done.

    Raises:
        CatpError: no question could be asked.
    """
    full = Setting(settings[0].method, settings[0].positions, ratio=0.0)
    answerer = Answerer(pipeline, [full, *settings], metric, seed, batch_size)
    rows: list[tuple[float, ...]] = []
    images: list[str] = []
    skipped = 0
    for batch in in_batches(questions, batch_size):
        for prediction in answerer.answer(batch):
            if prediction.error is None:
                rows.append(prediction.accuracy)
                images.append(prediction.image_key)
            else:
                skipped += 1
        advance(len(batch))
    if not rows:
        advice = "catp-eval on the same data says why" if skipped else "halves share no image: ask about more pictures"
        raise CatpError(f"none of {skipped} questions could be asked; {advice}")
    accuracy = np.array(rows)
    drops = []
    for setting, values in zip(settings, accuracy.T[1:]):
        found, low = lowest_difference(values, accuracy[:, 0], images, seed)
        drops.append(Drop(setting, len(rows), float(values.mean()), found.mean, low))
    return MeasuredHalf(len(rows), len(set(images)), skipped, float(accuracy[:, 0].mean()), tuple(drops))
