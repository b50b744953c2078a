"""The demo's statements: pairs of generated held-out scenes, a statement about each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from catp.calibration.data.dataset import VqaExample, subset_size
from catp.calibration.data.demo import DEMO_COUNT, DEMO_SEED
from catp.calibration.data.metrics import Metric
from catp.export.demo.nlvr.pool import Pool


@dataclass(frozen=True)
class DemoPairs:
    """`count` pairs from the sequence that `seed` starts; every pass draws them anew."""

    count: int = DEMO_COUNT
    seed: int = DEMO_SEED
    name = "demo"
    metric: ClassVar[Metric] = "exact match"

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[VqaExample]:
        pool = Pool(2 * self.count, self.seed, "held-out")
        for index in range(self.count):
            pair, (said,) = pool.draw(1)
            id, answer = f"{self.seed}-{index}", "true" if said.truth else "false"
            first, second = pool.picture(pair.first), pool.picture(pair.second)
            yield VqaExample(id, first, said.text, (answer,), said.kind, id, second)

    def subset(self, limit: int | None, fraction: float | None, seed: int) -> DemoPairs:
        """The pairs of another sequence: there is no end to them, so `limit` may also exceed the length."""
        return DemoPairs(subset_size(max(self.count, limit or 0), limit, fraction), seed)

    def digest(self) -> str:
        return hashlib.sha256(f"{self.count} pairs from seed {self.seed}".encode()).hexdigest()
