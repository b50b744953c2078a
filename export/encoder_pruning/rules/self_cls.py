"""MADTP's scores without guidance: for checkpoints that were not trained with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.encoder_pruning.rules.base import ScoringRule, TokenEvidence
from catp.runtime.bundle.encoder_pruning import Merge

TINY = 1e-8


@dataclass(frozen=True)
class SelfAndCls(ScoringRule):
    """Two of the three parts of arXiv 2403.02991, section 3: S = (s + c) / 2."""

    name: ClassVar[str] = "self-cls"
    merge: ClassVar[Merge] = "one"
    reads_maps: ClassVar[bool] = True

    def scores(self, evidence: TokenEvidence) -> torch.Tensor:
        given, from_cls = self.parts(evidence)
        return (given + from_cls) / 2

    @staticmethod
    def parts(evidence: TokenEvidence) -> tuple[torch.Tensor, torch.Tensor]:
        """s and c, float32 [B, N].

        s is what a token is given by all tokens but CLS, by the head that gives it most, over the sum of all s. c is
        what CLS gives it, where a head counts by its share of the norms of the heads' outputs for that token.
        """
        maps, outputs = evidence.maps, evidence.head_outputs
        assert maps is not None and outputs is not None, "reads_maps"
        given = maps.amax(1)[:, 1:, 1:].sum(1)
        norms = outputs[:, :, 1:].float().square().sum(3).sqrt()
        from_cls = maps[:, :, 0, 1:] * (norms / (norms.sum(1, keepdim=True) + TINY))
        return given / (given.sum(1, keepdim=True) + TINY), from_cls.sum(1)
