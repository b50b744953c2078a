"""The largest pruning ratio within an accuracy budget: searched on one half of the images, confirmed on the other."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from catp.calibration.accuracy.answering import Answerer, in_batches
from catp.calibration.accuracy.settings import Setting
from catp.calibration.accuracy.statistics import paired_difference, wilson_interval
from catp.calibration.data.dataset import Question
from catp.calibration.data.metrics import Metric
from catp.runtime.errors import CatpError
from catp.runtime.pipeline import Pipeline

Half = Literal["search", "confirmation"]


def unseen_losses(differences: np.ndarray, images: Sequence[str]) -> float:
    """The share of images that may lose beyond the share that did: to the upper end of its 95 % Wilson interval.

    A bootstrap knows only losses that it has seen; of few losses, or none, it is far too sure.

    Args:
        differences: [n] accuracy with pruning minus without, per question.
        images: [n] the image of each question: one that loses on any question counts as lost.
    """
    lost = len({image for image, difference in zip(images, differences) if difference < 0})
    total = len(set(images))
    return wilson_interval(lost, total)[1] - lost / total


def images_needed(budget: float) -> int:
    """How many images without any loss show that losses are rarer than `budget`: where Wilson's interval ends there."""
    return math.ceil(1.96**2 * (1 - budget) / budget)


def half(questions: Iterable[Question], seed: int, which: Half) -> Iterator[Question]:
    """The questions of a half. Questions about one image are in the same one, or the halves would know each other."""
    for question in questions:
        digest = hashlib.sha256(f"{seed} {question.image_key}".encode()).digest()
        if (digest[0] % 2 == 0) == (which == "search"):
            yield question


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
class Measured:
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
    questions: Iterable[Question],
    settings: Sequence[Setting],
    metric: Metric,
    seed: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Measured:
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
        found = paired_difference(values, accuracy[:, 0], seed, clusters=images)
        low = min(found.low, found.mean - unseen_losses(values - accuracy[:, 0], images))
        drops.append(Drop(setting, len(rows), float(values.mean()), found.mean, low))
    return Measured(len(rows), len(set(images)), skipped, float(accuracy[:, 0].mean()), tuple(drops))
