"""CATP, Cross-Attention Token Pruning (arXiv 2404.08567, section 3): image tokens rank the query tokens.

Every image token of every head and cross-attention layer gives N points to the query token that attends to
it most, N - 1 to the next, ..., 1 to the last (equal probabilities: the lower index first). A query token's
score is the sum of its points.
"""

from __future__ import annotations

import torch

PAIRS_PER_STEP = 64
"""Pairs of queries compared in one operator: the float copies of its results then stay in a CPU's cache."""


class RankPoints:
    """Rank points as a count of won comparisons, each pair of queries compared once.

    Points are 1 + the number of queries beaten, so the score is a count over pairs (q, j). A sort is several
    times as expensive in ONNX Runtime. Queries are split in halves: each of the lower half meets each of the upper
    half in one broadcast comparison, then both halves recurse as one batch, without copies of pair operands.
    """

    name = "catp"

    def scores(self, maps: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack([self._layer_scores(layer) for layer in maps]).sum(0)

    def _layer_scores(self, probabilities: torch.Tensor) -> torch.Tensor:
        """float32 [B, N] from [B, H, N, I]. Counts stay below 2^24, where float32 is exact."""
        batch, heads, queries, image_tokens = probabilities.shape
        columns = heads * image_tokens
        rows = probabilities.transpose(1, 2).reshape(batch, queries, columns)
        points = torch.full((queries,), float(columns))
        blocks, size = 1, queries  # a level compares within `blocks` groups of `size` consecutive queries
        while size % 2 == 0:
            half = size // 2
            upper, lower = rows.reshape(batch, blocks, 2, half, columns).unbind(2)
            wins = self._wins(lower, upper)  # [B, blocks, half, half]: where lower j beats upper q
            # What the lower one does not win outright the upper one wins: ties go to the lower index.
            levels = torch.stack([columns * half - wins.sum(2), wins.sum(3)], 2)
            points = points + levels.reshape(batch, queries)
            blocks, size = 2 * blocks, half
        if size > 1:  # an odd group: every pair once, below the diagonal
            group = rows.reshape(batch, blocks, size, columns)
            below = torch.ones(size, size).tril(-1)
            wins = self._wins(group, group) * below
            losses = (columns - wins).transpose(2, 3) * below.T
            points = points + (wins + losses).sum(3).reshape(batch, queries)
        return points

    def _wins(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """In how many columns left row a exceeds right row b: [B,G,n,C], [B,G,m,C] -> float32 [B,G,n,m]."""
        step = max(1, PAIRS_PER_STEP // (right.shape[1] * right.shape[2]))
        counts = [(part[:, :, :, None] > right[:, :, None]).float().sum(-1) for part in left.split(step, 2)]
        return torch.cat(counts, 2)
