"""PiToMe: tokens in crowds merge, those that stand alone are left in peace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.encoder_pruning.merges.nearest import unit_keys
from catp.export.encoder_pruning.rules.base import ScoringRule, TokenEvidence
from catp.runtime.bundle.encoder_pruning import Merge

MARGIN = 0.9
"""Margin of cosines in the first layer; it falls to 0 with depth (arXiv 2405.16148, section 3.2)."""


@dataclass(frozen=True)
class ProtectInformative(ScoringRule):
    """The opposite of a token's energy (arXiv 2405.16148, section 3.2): the mean of f(cosine of its mean key with every
    other's), where f(x) = x from the margin on and exp(x - margin) - 1 below.

    To merge r tokens, the 2 r of highest energy are taken in that order, alternately as ones that merge and as ones
    that they merge into. At most half of the tokens of a layer merge.
    """

    name: ClassVar[str] = "pitome"
    merge: ClassVar[Merge] = "nearest"
    weighs: ClassVar[bool] = False
    pairs: ClassVar[bool] = True

    def scores(self, evidence: TokenEvidence) -> torch.Tensor:
        keys = unit_keys(evidence.keys)
        likeness = keys @ keys.transpose(1, 2)
        margin = MARGIN * (1 - evidence.layer / evidence.layers)
        return -torch.where(margin > likeness, torch.exp(likeness - margin) - 1, likeness).mean(2)

    def settle(self, scores: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        places = torch.arange(scores.shape[1])
        lower = scores[:, None] < scores[:, :, None]
        tied_before = (scores[:, None] == scores[:, :, None]) & (places[None, :] < places[:, None])
        rank = (lower.to(torch.int64) + tied_before.to(torch.int64)).sum(2)  # 0: of the highest energy
        crowded = rank < 2 * (scores.shape[1] - kept)
        merging = crowded & (rank % 2 == 0)
        return torch.where(merging, -1.0, 1.0), crowded & (rank % 2 == 1)
