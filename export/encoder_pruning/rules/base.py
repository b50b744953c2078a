"""The interface of a scoring rule inside the vision encoder, and the evidence that it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.runtime.bundle.encoder_pruning import Merge


@dataclass(frozen=True)
class TokenEvidence:
    """The knowledge of a layer about its N image tokens between attention and MLP; B images, H heads of d.

    Token 0 of the layer is CLS, which every rule keeps: it is a row of the attention, and no token that is scored.
    """

    layer: int  # which of the encoder's, from 0
    layers: int  # that the encoder has
    tokens: torch.Tensor  # [B, N, W], after attention and residual
    keys: torch.Tensor  # [B, H, 1+N, d] of the self-attention
    maps: torch.Tensor | None  # its probabilities, float32 [B, H, 1+N, 1+N], where the rule reads them
    cls_row: torch.Tensor | None  # those of CLS, float32 [B, H, 1+N], likewise
    head_outputs: torch.Tensor | None  # [B, H, 1+N, d]: probabilities times values, beside `maps`
    guidance: torch.Tensor | None  # M, float32 [B, N, T]: the layer's input times `space_dict`, where the rule reads it
    scorer: torch.Tensor | None  # float32 [W]: this layer's row of a taught scorer, likewise
    positions: torch.Tensor  # int64 [B, N]: the patch that each token was, -1 for a merged one


class ScoringRule(ABC):
    """Scores image tokens inside the encoder graph; in each layer that prunes, the k highest are kept.

    A rule is a frozen dataclass whose fields are its options. To add one: write its file, and name it in RULES and in
    `catp.runtime.bundle.encoder_pruning.Rule`. Scores are float32 whatever the graph's precision.
    """

    name: ClassVar[str]
    merge: ClassVar[Merge]
    """The merge of the others, unless something else is asked for."""

    reads_maps: ClassVar[bool] = False
    """Whether it reads whole probability maps: attention is then computed step by step in layers that prune."""

    reads_cls_row: ClassVar[bool] = False
    """Whether it reads the probabilities of CLS alone, which are computed beside a fused attention."""

    reads_guidance: ClassVar[bool] = False
    """Whether it needs MADTP's `space_dict`."""

    reads_scorer: ClassVar[bool] = False
    """Whether it needs a taught scorer."""

    weighs: ClassVar[bool] = True
    """Whether its scores are at least 0, so that the merge "one" may weigh tokens by them."""

    pairs: ClassVar[bool] = False
    """Whether it says who merges into whom: at most half of a layer's tokens merge, and the merge is "nearest"."""

    @abstractmethod
    def scores(self, evidence: TokenEvidence) -> torch.Tensor:
        """float32 [B, N]."""

    def settle(self, scores: torch.Tensor, kept: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Scores that may depend on how many tokens are kept, and which tokens others are averaged into.

        Args:
            scores: float32 [B, N], as `scores` returned them.
            kept: int64 [1].

        Returns:
            float32 [B, N], whose k highest are kept; bool [B, N], None: every kept one receives.
        """
        return scores, None
