"""CATP, Cross-Attention Token Pruning (arXiv 2404.08567, section 3): image tokens rank the query tokens.

Every image token of every head and cross-attention layer gives N points to the query token that attends to
it most, N - 1 to the next, ..., 1 to the last (equal probabilities: the lower index first). A query token's
score is the sum of its points.
"""

from __future__ import annotations

import torch


class RankPoints:
    """Rank points as a count of won comparisons, each pair of queries compared once.

    Points are 1 + the number of queries beaten, so the score is a count over pairs. A sort is several times as
    expensive in ONNX Runtime, and pairs taken query by query half as expensive again: here the queries are split in
    halves, every query of the second half meets every one of the first in one broadcast comparison, and both halves
    recurse as one batch.
    """

    name = "catp"

    def scores(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """float32 [B, N] from probabilities [B, H, N, I] per layer. Counts stay below 2^24, where float32 is exact."""
        batch, _, queries, _ = maps[0].shape
        # Image tokens of all heads side by side, layers apart: one layer's comparisons fit a CPU's cache.
        layers = [layer.transpose(1, 2).reshape(batch, queries, -1) for layer in maps]
        columns = sum(layer.shape[2] for layer in layers)
        points = torch.full((1, queries), float(columns))
        groups, size = 1, queries
        while size % 2 == 0:
            half = size // 2
            wins = torch.stack([_wins_of_second_half(layer, groups, half) for layer in layers]).sum(0)
            # What the later query does not win outright the earlier one wins: ties go to the lower index.
            gained = torch.stack([columns * half - wins.sum(2), wins.sum(3)], 2)
            points = points + gained.reshape(batch, queries)
            groups, size = 2 * groups, half
        if size > 1:  # groups of odd size: all their pairs at once, each counted where the later query comes first
            wins = torch.stack([_wins_within(layer, groups, size) for layer in layers]).sum(0)
            later = torch.ones(size, size).tril(-1)
            gained = (wins * later).sum(3) + ((columns - wins) * later).sum(2)
            points = points + gained.reshape(batch, queries)
        return points


def _wins_of_second_half(rows: torch.Tensor, groups: int, half: int) -> torch.Tensor:
    """[B, groups, a, b]: in how many columns query a of a group's second half exceeds query b of its first."""
    first, second = rows.reshape(rows.shape[0], groups, 2, half, -1).split(1, 2)
    return (second.transpose(2, 3) > first).float().sum(-1)


def _wins_within(rows: torch.Tensor, groups: int, size: int) -> torch.Tensor:
    """[B, groups, a, b]: in how many columns query a of a group exceeds query b."""
    group = rows.reshape(rows.shape[0], groups, size, -1)
    return (group[:, :, :, None] > group[:, :, None]).float().sum(-1)
