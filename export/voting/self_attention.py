"""A baseline of the paper (arXiv 2404.08567, section 4): query tokens that other query tokens attend to are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.voting.base import Evidence, VotingMethod


@dataclass(frozen=True)
class SelfAttention(VotingMethod):
    """The attention a query receives in the Q-Former's self-attention, summed over queries, heads and layers."""

    name: ClassVar[str] = "self-attention"
    reads_self_attention: ClassVar[bool] = True

    def scores(self, evidence: Evidence) -> torch.Tensor:
        scores = evidence.self_attention[0].sum((1, 2))
        for layer in evidence.self_attention[1:]:
            scores = scores + layer.sum((1, 2))
        return scores
