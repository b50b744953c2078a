"""Token Merging: every second token looks for its likeness among the others, and the most alike merge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.encoder_pruning.merges.nearest import unit_keys
from catp.export.encoder_pruning.rules.base import ScoringRule, TokenEvidence
from catp.runtime.bundle.encoder_pruning import Merge

RECEIVER = 2.0
"""Above every cosine's opposite: a token that others merge into is never merged itself."""


@dataclass(frozen=True)
class TokenMerging(ScoringRule):
    """ToMe (arXiv 2210.09461, section 3): tokens at even places merge into the one at an odd place whose mean key has
    the largest cosine with theirs; those that are least alike stay. At most half of the tokens of a layer merge.
    """

    name: ClassVar[str] = "tome"
    merge: ClassVar[Merge] = "nearest"
    weighs: ClassVar[bool] = False
    pairs: ClassVar[bool] = True

    def scores(self, evidence: TokenEvidence) -> torch.Tensor:
        keys = unit_keys(evidence.keys)
        odd = _odd(keys.shape[1])
        likeness = keys @ keys.transpose(1, 2)
        best = likeness.masked_fill(~odd, -RECEIVER).amax(2)
        return torch.where(odd, RECEIVER, -best)

    def settle(self, scores: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return scores, _odd(scores.shape[1]).expand(scores.shape[0], -1)


def _odd(count: int | torch.SymInt) -> torch.Tensor:
    """bool [N]: the odd places of N."""
    return torch.arange(count) % 2 == 1  # type: ignore[arg-type]
