"""A scorer that was taught, without labels, what the Q-Former misses when a patch is hidden from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.encoder_pruning.rules.base import ScoringRule, TokenEvidence
from catp.runtime.bundle.encoder_pruning import Merge

EPSILON = 1e-6
"""Added to a token's variance."""


@dataclass(frozen=True)
class Taught(ScoringRule):
    """A linear map for each layer, of the token after attention and residual, normalised to mean 0 and variance 1.

    `catp-calibrate scorer` fits it (`catp.calibration.encoder.teaching`) to the logarithm of how far the query
    embeddings move when the patch is hidden.
    """

    name: ClassVar[str] = "taught"
    merge: ClassVar[Merge] = "nearest"
    weighs: ClassVar[bool] = False
    reads_scorer: ClassVar[bool] = True

    def scores(self, evidence: TokenEvidence) -> torch.Tensor:
        assert evidence.scorer is not None, "reads_scorer"
        return normalised(evidence.tokens) @ evidence.scorer


def normalised(tokens: torch.Tensor) -> torch.Tensor:
    """Each token [..., W] with mean 0 and variance 1, float32."""
    centred = tokens.float() - tokens.float().mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + EPSILON).sqrt()
