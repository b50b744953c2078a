"""MADTP's and EViT's merge: one token more, the average of the others by their scores."""

from __future__ import annotations

import torch

from catp.export.encoder_pruning.merges.base import Chosen, Tokens

TINY = 1e-8


class OneToken:
    """The sum of (S_j / sum of dropped S) x_j comes last (arXiv 2403.02991; arXiv 2202.07800, equation 6)."""

    counts_sizes = False
    adds = 1

    def __call__(self, tokens: Tokens, chosen: Chosen) -> Tokens:
        # The weights are rounded to the tokens' type last: sums of scores are small numbers.
        left = chosen.scores.masked_fill(chosen.kept, 0.0)
        weights = left / (left.sum(1, keepdim=True) + TINY)
        merged = torch.bmm(weights[:, None].to(tokens.embeds.dtype), tokens.embeds)
        position = torch.full_like(tokens.positions[:, :1], -1)
        if chosen.merges_any is not None:
            some = chosen.merges_any.item()
            torch._check(some >= 0)
            torch._check(some <= 1)
            merged, position = merged[:, :some], position[:, :some]
        return Tokens(
            torch.cat([chosen.of(tokens.embeds), merged], 1),
            torch.cat([chosen.of(tokens.positions), position], 1),
            None,
        )
