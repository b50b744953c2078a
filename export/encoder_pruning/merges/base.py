"""The interface of a merge: from a layer's tokens, and which of them are kept, to the next layer's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Tokens:
    """Image tokens of a layer, without CLS."""

    embeds: torch.Tensor  # [B, N, W], after attention and residual
    positions: torch.Tensor  # int64 [B, N]: the patch that each token was, -1 for a merged one
    sizes: torch.Tensor | None  # float32 [B, N]: patches that were averaged into each; None where nobody counts them
    merged_into: torch.Tensor | None = None  # int64 [B, N]: of each token that came in, the patch of what it is part of


@dataclass(frozen=True)
class Chosen:
    """The tokens that a layer keeps."""

    indices: torch.Tensor  # int64 [B, k], places among its N
    scores: torch.Tensor  # float32 [B, N]
    keys: torch.Tensor  # [B, H, 1+N, d] of its attention
    receivers: torch.Tensor | None  # bool [B, N], see `ScoringRule.settle`
    merges_any: torch.Tensor | None  # int64 [1], 0 where nothing was pruned; None: something always is

    @property
    def kept(self) -> torch.Tensor:
        """bool [B, N]."""
        nothing = torch.zeros_like(self.scores, dtype=torch.bool)
        return nothing.scatter(1, self.indices, torch.ones_like(self.indices, dtype=torch.bool))

    def of(self, values: torch.Tensor) -> torch.Tensor:
        """The kept ones of `values`, [B, N] or [B, N, W]."""
        if values.dim() == 2:
            return values.gather(1, self.indices)
        return values.gather(1, self.indices[:, :, None].expand(-1, -1, values.shape[2]))


class Merging(Protocol):
    """A merge."""

    counts_sizes: bool
    """Whether it weighs tokens by `sizes`; attention then counts a token as often as it has patches, as in ToMe."""

    adds: int
    """Tokens that come after the k kept ones."""

    def __call__(self, tokens: Tokens, chosen: Chosen) -> Tokens:
        """The tokens that go on."""
        ...
