"""MADTP's scores: what tokens give each other, what CLS gives them, and what the learned dictionary finds in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.encoder_pruning.rules.base import ScoringRule, TokenEvidence
from catp.export.encoder_pruning.rules.self_cls import SelfAndCls
from catp.runtime.bundle.encoder_pruning import LOWEST, Merge

TINY = 1e-8

FAR_BELOW = 1e30
"""Further than scores can be from each other; averages of it are still float32."""


@dataclass(frozen=True)
class Madtp(ScoringRule):
    """arXiv 2403.02991, section 3: S = (s + m + c) / 3, where m is the largest product of a token with an entry of the
    dictionary, over the sum of these. Only for checkpoints that were trained with one.
    """

    name: ClassVar[str] = "madtp"
    merge: ClassVar[Merge] = "one"
    reads_maps: ClassVar[bool] = True
    reads_guidance: ClassVar[bool] = True

    def scores(self, evidence: TokenEvidence) -> torch.Tensor:
        assert evidence.guidance is not None, "reads_guidance"
        given, from_cls = SelfAndCls.parts(evidence)
        found = evidence.guidance.amax(2)
        return (given + found / (found.sum(1, keepdim=True) + TINY) + from_cls) / 3


def wanted_tokens(scores: torch.Tensor, guidance: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """How many tokens MADTP keeps of N: int64 [1], N where it prunes nothing.

    The same number for every image of a batch, as in the official code: the largest that one of them asks for. A
    softmax over the tokens of guidance / temperature weighs the scores for each entry of the dictionary; a token above
    the least of these averages is kept.

    Args:
        scores: float32 [B, N].
        guidance: float32 [B, N, T].
        temperature: float32 [1]; 0 prunes nothing.
    """
    tokens = torch.ones_like(scores[0], dtype=torch.int64).sum(0)
    shares = torch.softmax(guidance / temperature.clamp(min=LOWEST), 1)
    # At temperature 0 every token shall be above the threshold. TensorRT traces a count of tokens back to what it
    # depends on, and takes no float for an input that it reaches so; it looks no further than a softmax.
    prunes_some = torch.softmax(torch.stack([temperature / LOWEST * 1000, 0 * temperature]), 0)[0]
    lowered = scores - FAR_BELOW * (1 - prunes_some)  # by half of it at 0, by nothing above
    threshold = torch.bmm(shares.transpose(1, 2), lowered[:, :, None]).amin(1)
    wanted = (scores > threshold).to(torch.int64).sum(1).amax(0)
    prunes = (wanted > 0) & (tokens - wanted > 1)
    return torch.where(prunes, wanted, tokens)[None]
