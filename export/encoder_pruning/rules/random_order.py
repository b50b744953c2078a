"""A random order of the patches, the same for every image: what every other rule must beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from catp.export.encoder_pruning.rules.base import ScoringRule, TokenEvidence
from catp.runtime.bundle.encoder_pruning import Merge

MOST_PATCHES = 1 << 14
"""Entries of the table of scores: more patches than any encoder here has."""


@dataclass(frozen=True)
class RandomOrder(ScoringRule):
    """Scores drawn once, by patch; a patch that is kept in one layer is among the best in the next."""

    name: ClassVar[str] = "random"
    merge: ClassVar[Merge] = "one"
    seed: int = 0

    def scores(self, evidence: TokenEvidence) -> torch.Tensor:
        return self.table().to(evidence.keys.device)[evidence.positions]  # the last one is a merged token's

    def table(self) -> torch.Tensor:
        """float32 [MOST_PATCHES], by patch."""
        # By numpy: drawn by PyTorch, it would be an operation of the graph that is being traced.
        return torch.from_numpy(np.random.default_rng(self.seed).random(MOST_PATCHES, np.float32))
