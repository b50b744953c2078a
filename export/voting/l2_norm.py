"""A baseline of the paper (arXiv 2404.08567, section 4): query tokens with the largest output embeddings are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.voting.base import Evidence, VotingMethod


@dataclass(frozen=True)
class L2Norm(VotingMethod):
    """The Euclidean norm of each query's output embedding, before the projection."""

    name: ClassVar[str] = "l2-norm"

    def scores(self, evidence: Evidence) -> torch.Tensor:
        embeds = evidence.query_embeds
        return (embeds * embeds).sum(2).sqrt()
