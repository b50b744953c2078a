"""The most distinct query tokens, beyond the paper: what is kept should explain what is dropped.

The next query kept is the one whose output embedding is worst explained, by least squares, by those kept before: QR
decomposition with column pivoting (Businger and Golub 1965) of the centred embeddings. It looks at no attention at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.voting.base import Evidence, VotingMethod


@dataclass(frozen=True)
class Distinct(VotingMethod):
    """A query's score is the squared length of what the earlier ones left unexplained, of all N together 1 at most."""

    name: ClassVar[str] = "distinct"

    def scores(self, evidence: Evidence) -> torch.Tensor:
        rest = evidence.query_embeds - evidence.query_embeds.mean(1, keepdim=True)
        rest = rest * torch.rsqrt((rest * rest).sum((1, 2), keepdim=True).clamp(min=1e-30))
        queries = rest.shape[1]
        index = torch.arange(queries)
        scores = taken = torch.zeros_like(rest[:, :, 0])
        for step in range(queries):
            # Modified Gram-Schmidt on the rows themselves: a Gram matrix would square the rounding errors.
            left = (rest * rest).sum(2) * (1 - taken)
            # Centred rows sum to 0, so the last two leave opposite residuals and tie: the lower index, not rounding.
            rank = left - 2 * taken if step < queries - 2 else -taken
            chosen = (index == rank.argmax(1, keepdim=True)).float()  # one-hot
            scores = scores + left * chosen
            taken = taken + chosen
            if step < queries - 1:
                pivot = chosen[:, None] @ rest  # [B, 1, D]
                length = (pivot * pivot).sum(2, keepdim=True).clamp(min=1e-20)  # rounding: the rest are duplicates
                rest = rest - (rest @ pivot.transpose(1, 2)) / length * pivot
        return scores
