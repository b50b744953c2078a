"""Duplicate-aware cross-attention vote, beyond the paper: kept tokens should between them see the whole image.

Rank points keep duplicates: query tokens that look at the same place score alike. Here an image token that is already
attended to by a kept query adds nothing for another one: the next query kept is the one that adds most to

    sum over layers, heads, image tokens of  worth * max over kept queries of attention,

the facility-location function, whose greedy maximum is within 1 - 1/e of the best (Nemhauser, Wolsey and Fisher 1978).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from catp.export.voting.base import Evidence, VotingMethod, choose_layers, weighted_maps


@dataclass(frozen=True)
class Coverage(VotingMethod):
    """A query's score is what it added when it was chosen. Later ones add less, so the top k are the first k.

    An image token is worth how distinct it is: its embedding's distance from the mean of the image's embeddings.
    """

    name: ClassVar[str] = "coverage"

    image_weights: Literal["distinctness", "attention", "patches", "uniform"] = "distinctness"
    layers: str = "all"
    layer_weights: tuple[float, ...] = ()

    @property
    def reads_image_weights(self) -> bool:
        return self.image_weights in ("attention", "patches")

    def cross_layers(self, available: int) -> tuple[int, ...]:
        return tuple(choose_layers(self.layers, self.layer_weights, available))

    def scores(self, evidence: Evidence) -> torch.Tensor:
        worth = self._worth(evidence)
        seen = []
        for attention, weight in weighted_maps(evidence, self.layers, self.layer_weights):
            if worth is None:
                # Every query's probabilities sum to 1: a blind look, 1 / I everywhere, is worth nothing.
                attention = (attention - 1.0 / attention.shape[3]).clamp(min=0)
            else:
                attention = attention * worth[:, None, None]
            seen.append(attention if weight == 1 else weight * attention)
        batch, _, queries, _ = seen[0].shape
        # Image tokens of all heads and layers side by side: [B, N, L*H*I].
        rows = torch.cat([layer.transpose(1, 2).reshape(batch, queries, -1) for layer in seen], 2)
        return _greedy_cover(rows)

    def _worth(self, evidence: Evidence) -> torch.Tensor | None:
        """[B, I]; None: every image token is worth the same."""
        if self.image_weights == "uniform":
            return None
        if self.reads_image_weights:
            return evidence.image_weights
        centred = evidence.image_embeds - evidence.image_embeds.mean(1, keepdim=True)
        return (centred * centred).sum(2).sqrt()


def _greedy_cover(rows: torch.Tensor) -> torch.Tensor:
    """The gain that each of `rows` [B, N, columns] adds to the maximum of those chosen before it, choosing greedily."""
    queries = rows.shape[1]
    index = torch.arange(queries)
    bound = rows.sum(2).amax(1, keepdim=True)  # of every gain
    covered = torch.zeros_like(rows[:, :1])
    scores = taken = torch.zeros_like(rows[:, :, 0])
    for step in range(queries):
        gain = (rows - covered).clamp(min=0).sum(2)
        chosen = (index == (gain - 2 * bound * taken).argmax(1, keepdim=True)).float()  # one-hot; ties: lower index
        scores = scores + gain * chosen
        taken = taken + chosen
        if step < queries - 1:
            covered = torch.maximum(covered, chosen[:, None] @ rows)
    return scores
