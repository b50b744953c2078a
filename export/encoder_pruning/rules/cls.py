"""The attention of CLS: EViT's score, which leaves the rest of the attention fused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.encoder_pruning.rules.base import ScoringRule, TokenEvidence
from catp.runtime.bundle.encoder_pruning import Merge


@dataclass(frozen=True)
class Cls(ScoringRule):
    """The mean over heads of CLS's attention (arXiv 2202.07800, section 3). Merged into the nearest kept token, the
    others follow DiffRate (arXiv 2305.17997) without its training; into one token, EViT."""

    name: ClassVar[str] = "cls"
    merge: ClassVar[Merge] = "nearest"
    reads_cls_row: ClassVar[bool] = True

    def scores(self, evidence: TokenEvidence) -> torch.Tensor:
        assert evidence.cls_row is not None, "reads_cls_row"
        return evidence.cls_row[:, :, 1:].mean(1)
