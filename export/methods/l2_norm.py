"""A baseline of the paper (arXiv 2404.08567, section 4): query tokens with the largest output embeddings are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.export.methods.base import Evidence


@dataclass(frozen=True)
class L2Norm:
    """The Euclidean norm of each query's output embedding, before the projection."""

    name: ClassVar[str] = "l2-norm"
    reads_self_attention: ClassVar[bool] = False
    reads_image_weights: ClassVar[bool] = False

    def cross_layers(self, available: int) -> tuple[int, ...]:
        return ()

    def scores(self, evidence: Evidence) -> torch.Tensor:
        embeds = evidence.query_embeds
        return (embeds * embeds).sum(2).sqrt()
