"""The length of a token: free, and good where no token serves the model as a scratch pad."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.encoder_pruning.rules.base import ScoringRule, TokenEvidence
from catp.runtime.bundle.encoder_pruning import Merge


@dataclass(frozen=True)
class Norm(ScoringRule):
    """The Euclidean norm of a token after attention and residual. In large ViTs the longest tokens are background that
    they store things in (registers, arXiv 2309.16588): ask the data before it is used there."""

    name: ClassVar[str] = "norm"
    merge: ClassVar[Merge] = "nearest"

    def scores(self, evidence: TokenEvidence) -> torch.Tensor:
        return evidence.tokens.float().square().sum(2).sqrt()
