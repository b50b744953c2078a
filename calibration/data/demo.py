"""The demo's data set: generated held-out scenes, each with one question."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from catp.calibration.data.dataset import PROMPT_TEMPLATE, VqaExample, subset_size
from catp.calibration.data.metrics import Metric
from catp.export.demo import scenes

DEMO_SEED = 2024
DEMO_COUNT = 1000


@dataclass(frozen=True)
class DemoScenes:
    """`count` scenes from the endless sequence that `seed` starts; every pass draws them anew."""

    count: int = DEMO_COUNT
    seed: int = DEMO_SEED
    name = "demo"
    metric: ClassVar[Metric] = "exact match"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[VqaExample]:
        before, after = PROMPT_TEMPLATE.split("{}")
        for index, example in enumerate(scenes.examples(self.count, self.seed)):
            id = f"{self.seed}-{index}"
            text = example.question.prompt.removeprefix(before).removesuffix(after)
            yield VqaExample(id, example.image, text, (example.question.answer,), "other", image_key=id)

    def subset(self, limit: int | None, fraction: float | None, seed: int) -> DemoScenes:
        """The first scenes of another sequence: there is no end to them, so `limit` may also exceed the length."""
        return DemoScenes(subset_size(max(self.count, limit or 0), limit, fraction), seed)

    def digest(self) -> str:
        return hashlib.sha256(f"{self.count} scenes from seed {self.seed}".encode()).hexdigest()
