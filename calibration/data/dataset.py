"""A data set: questions about images, with the answers that people gave."""

from __future__ import annotations

import copy
import hashlib
import heapq
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from PIL import Image

from catp.calibration.data.metrics import Metric
from catp.runtime.errors import UsageError

PROMPT_TEMPLATE = "Question: {} Answer:"
"""How BLIP-2 is asked in its paper's zero-shot VQA, and how the demo model was trained."""


@dataclass(frozen=True, slots=True)
class VqaExample:
    """One question, with what is needed to ask it and to judge the answer.

    Args:
        id: unique in its data set.
        image: a file, read by `catp.runtime.inputs.images.load_image` when its turn comes, or a picture just drawn.
        question: the bare text, without the prompt around it.
        answers: one or more, as people gave them; VQAv2 has ten.
        answer_type: what to break results down by ("yes/no", "number" and "other" in VQAv2).
        image_key: equal for questions about the same image, or the same two.
        second: of statements about two images, the second one.
    """

    id: str
    image: Path | Image.Image
    question: str
    answers: tuple[str, ...]
    answer_type: str
    image_key: str
    second: Path | Image.Image | None = None

    @property
    def images(self) -> list[Path | Image.Image]:
        """One, or two."""
        return [self.image] if self.second is None else [self.image, self.second]

    @property
    def prompt(self) -> str:
        return PROMPT_TEMPLATE.format(self.question)


class DataSet(Protocol):
    """Questions in a fixed order, those about one image one after another. Can be gone through any number of times.

    No decoded picture is held: the one that iteration hands out is the consumer's.
    """

    @property
    def name(self) -> str: ...

    @property
    def metric(self) -> Metric:
        """How its answers are judged."""
        ...

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[VqaExample]: ...

    def subset(self, limit: int | None, fraction: float | None, seed: int) -> DataSet:
        """At most `limit` questions, or that fraction of them, chosen by `seed`; all of them where both are None.

        Raises:
            UsageError: both are given, or one is out of range.
        """
        ...

    def digest(self) -> str:
        """sha256 in hex that differs where a question, its answers or their order do; pictures are not looked at."""
        ...


def image_keys(images: Sequence[Path]) -> list[str]:
    """Keys of pictures in files, relative to the folder that has all of them: the same wherever the data lie."""
    paths = [image.absolute() for image in images]
    folder = os.path.commonpath([path.parent for path in paths]) if paths else ""
    return [str(path.relative_to(folder)) for path in paths]


class QuestionList:
    """A data set that was read from files: texts in memory, images on disk."""

    metric: Metric = "VQA accuracy"

    def __init__(self, name: str, questions: Iterable[VqaExample]) -> None:
        self.name = name
        listed = list(questions)
        # Stable, so only questions whose image came up before move: an image is encoded once for all its questions.
        first: dict[str, int] = {}
        for question in listed:
            first.setdefault(question.image_key, len(first))
        self._questions = sorted(listed, key=lambda question: first[question.image_key])

    def __len__(self) -> int:
        return len(self._questions)

    def __iter__(self) -> Iterator[VqaExample]:
        return iter(self._questions)

    def subset(self, limit: int | None, fraction: float | None, seed: int) -> Self:
        """Questions drawn one by one, in the order of the set. For one seed, a larger subset contains a smaller one."""
        count = subset_size(len(self), limit, fraction)
        # Ranked by a hash rather than drawn by a generator: independent of library versions and of the files' order.
        ids = heapq.nsmallest(
            count, (q.id for q in self), key=lambda id: hashlib.sha256(f"{seed} {id}".encode()).digest()
        )
        chosen = set(ids)
        found = copy.copy(self)
        found._questions = [q for q in self if q.id in chosen]
        return found

    def digest(self) -> str:
        total = hashlib.sha256()
        for q in self:
            total.update(repr((q.id, q.question, q.answers, q.answer_type, q.image_key)).encode())
        return total.hexdigest()


class PairList(QuestionList):
    """Statements about two images each; an answer is true or false."""

    metric: Metric = "exact match"


def subset_size(total: int, limit: int | None, fraction: float | None) -> int:
    """How many of `total` questions a subset has, at least one.

    Raises:
        UsageError: both are given, or one is out of range.
    """
    if limit is not None and fraction is not None:
        raise UsageError(f"limit {limit} and fraction {fraction}: give one of them")
    if limit is not None and limit < 1:
        raise UsageError(f"limit {limit}: give the number of questions, at least 1")
    if fraction is not None and not 0 < fraction <= 1:
        raise UsageError(f"fraction {fraction}: give the part of the questions, 0 < fraction <= 1, such as 0.1")
    if limit is not None:
        return min(limit, total)
    return total if fraction is None else max(1, math.floor(fraction * total + 0.5))
