"""Pictures and texts as data sets: captions of single pictures, or one list of texts for all of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from catp.calibration.data.captions import Captions
from catp.calibration.data.dataset import QuestionList, VqaExample, image_keys, subset_size
from catp.calibration.data.demo import DEMO_COUNT, DEMO_SEED
from catp.calibration.data.metrics import Metric
from catp.export.demo import scenes

DEMO_TEXTS = tuple(f"a {color} {shape}" for color in scenes.COLORS for shape in scenes.SHAPES)
"""Texts of the demo: each names a thing that a scene may show."""


class CaptionList(QuestionList):
    """Captions, each with its picture: each is to be found by the other."""

    metric: Metric = "recall at 1"

    def __init__(self, captions: Captions) -> None:
        super().__init__(captions.name, _with_pictures(captions.images, captions.texts, captions.image_of))


class PictureList(QuestionList):
    """Pictures, and texts of which nobody said what they belong to. Each picture has one for calls that read both."""

    metric: Metric = "same best text"

    def __init__(self, name: str, images: Sequence[Path], texts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        in_turn = [texts[place % len(texts)] for place in range(len(images))]
        super().__init__(name, _with_pictures(images, in_turn, range(len(images))))

    def digest(self) -> str:
        return hashlib.sha256(f"{super().digest()} {self.texts}".encode()).hexdigest()


@dataclass(frozen=True)
class DemoPictures:
    """`count` scenes from the sequence that `seed` starts, for which each text names a colour and a shape."""

    count: int = DEMO_COUNT
    seed: int = DEMO_SEED
    name = "demo"
    metric: ClassVar[Metric] = "same best text"
    texts: ClassVar[tuple[str, ...]] = DEMO_TEXTS

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[VqaExample]:
        for index, example in enumerate(scenes.examples(self.count, self.seed)):
            id, text = f"{self.seed}-{index}", DEMO_TEXTS[index % len(DEMO_TEXTS)]
            yield VqaExample(id, example.image, text, (), "text", image_key=id)

    def subset(self, limit: int | None, fraction: float | None, seed: int) -> DemoPictures:
        """The first scenes of another sequence: there is no end to them, so `limit` may also exceed the length."""
        return DemoPictures(subset_size(max(self.count, limit or 0), limit, fraction), seed)

    def digest(self) -> str:
        return hashlib.sha256(f"{self.count} pictures from seed {self.seed}".encode()).hexdigest()


def _with_pictures(images: Sequence[Path], texts: Sequence[str], image_of: Iterable[int]) -> Iterator[VqaExample]:
    keys = image_keys(images)
    for number, (text, image) in enumerate(zip(texts, image_of)):
        yield VqaExample(str(number), images[image], text, (), "text", image_key=keys[image])
