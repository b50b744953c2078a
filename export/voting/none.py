"""No voting: every query token is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.voting.base import Evidence, VotingMethod


@dataclass(frozen=True)
class KeepAll(VotingMethod):
    """All scores are 0. For bundles that never prune: the vote costs nothing where there is none."""

    name: ClassVar[str] = "none"

    def scores(self, evidence: Evidence) -> torch.Tensor:
        batch, queries, _ = evidence.query_embeds.shape
        return torch.zeros(batch, queries)
