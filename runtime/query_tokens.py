"""What the vision encoder and the Q-Former hand on: images, encoded, and the query tokens that are kept of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from catp.runtime.engines.base import Value


@dataclass(frozen=True)
class Pruned:
    """What the language model gets to see of a batch of images, in the engine's memory."""

    kept_indices: Value  # int64 [B, k] ascending
    kept_embeds: Value  # [B, k, Dl]


Encoded = Mapping[str, Value]
"""What the Q-Former reads, by name: the vision encoder's image_embeds [B, I, Dv], image_weights [B, I] where the vote
reads them, and instruction_ids and instruction_mask int64 [B, T] where it reads the prompt."""


@dataclass(frozen=True)
class Votes:
    """Every query token of a batch with its scores."""

    embeds: np.ndarray  # [B, N, Dl]
    outputs: dict[str, np.ndarray]  # token_scores float32 [B, N], and the diagnostics where the bundle has them

    @property
    def scores(self) -> np.ndarray:
        """float32 [B, N], by the bundle's own method."""
        return self.outputs["token_scores"]

    def keep(self, indices: np.ndarray, rows: np.ndarray | None = None) -> Pruned:
        """The query tokens `indices` int64 [b, k] of the images `rows` int64 [b] (None: all of them, in order)."""
        rows = np.arange(len(self.embeds)) if rows is None else rows
        return Pruned(indices, self.embeds[rows[:, None], indices])
