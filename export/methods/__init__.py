"""Voting methods: how attention maps become `token_scores`. One file each, registered in METHODS."""

from __future__ import annotations

from typing import Protocol

import torch

from catp.export.methods.catp import RankPoints
from catp.export.methods.none import KeepAll


class VotingMethod(Protocol):
    """Scores the query tokens inside the Q-Former graph; the highest `num_kept` are kept, ties by lower index."""

    name: str

    def scores(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """float32 [B, N] from the cross-attention probabilities of each cross-attention layer, float32 [B,H,N,I]."""
        ...


METHODS: dict[str, type[VotingMethod]] = {method.name: method for method in (RankPoints, KeepAll)}
