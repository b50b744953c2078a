"""The findings of catp-calibrate provider, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from catp.calibration.placement.search import Measured
from catp.runtime.bundle.placements import Placement


@dataclass(frozen=True)
class PlacementReport:
    """The whole of it."""

    model: str
    data: str
    questions: int
    rounds: int
    placement: Placement
    measured: Sequence[Measured]

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": 1,
            "model": self.model,
            "data": self.data,
            "questions": self.questions,
            "rounds": self.rounds,
            "placement": self.placement.model_dump(mode="json"),
            "measured": [
                {
                    "graph": found.graph,
                    "place": found.place.model_dump(mode="json"),
                    "milliseconds": found.milliseconds,
                    "ratio": found.ratio.model_dump(mode="json") if found.ratio else None,
                    "chosen": found.chosen,
                    "refused": found.refused,
                }
                for found in self.measured
            ],
        }
