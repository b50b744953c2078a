"""CATP, Cross-Attention Token Pruning (arXiv 2404.08567, section 3): image tokens rank the query tokens.

Every image token of every head and cross-attention layer gives N points to the query token that attends to
it most, N - 1 to the next, ..., 1 to the last (equal probabilities: the lower index first). A query token's
score is the sum of its points, weighted by layer and by image token where options say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from catp.export.voting.base import Evidence, VotingMethod, choose_layers, weighted_maps
from catp.runtime.errors import UsageError


@dataclass(frozen=True)
class RankPoints(VotingMethod):
    """Rank points as a count of won comparisons, each pair of queries compared once.

    Points are 1 + the number of queries beaten, so the score is a count over pairs. A sort is several times as
    expensive in ONNX Runtime, and pairs taken query by query half as expensive again: here the queries are split in
    halves, every query of the second half meets every one of the first in one broadcast comparison, and both halves
    recurse as one batch.
    """

    name: ClassVar[str] = "catp"

    points: Literal["rank", "probability"] = "rank"
    image_weights: Literal["uniform", "attention", "patches"] = "uniform"
    layers: str = "all"
    layer_weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.points == "probability" and self.image_weights == "uniform":
            raise UsageError(
                "--points probability: every query's probabilities sum to 1, so with equal weights all queries tie; "
                "give --image-weights attention too"
            )

    @property
    def reads_image_weights(self) -> bool:
        return self.image_weights != "uniform"

    def cross_layers(self, available: int) -> tuple[int, ...]:
        return tuple(choose_layers(self.layers, self.layer_weights, available))

    def scores(self, evidence: Evidence) -> torch.Tensor:
        chosen = weighted_maps(evidence, self.layers, self.layer_weights)
        image_weights = evidence.image_weights if self.reads_image_weights else None
        if self.points == "probability":
            assert image_weights is not None
            # Heads summed first: one small product per layer.
            return sum(  # type: ignore[return-value]
                weight * (layer.sum(1) @ image_weights[:, :, None])[:, :, 0] for layer, weight in chosen
            )
        return _rank_points(chosen, image_weights)


def _rank_points(maps: list[tuple[torch.Tensor, float]], image_weights: torch.Tensor | None) -> torch.Tensor:
    """float32 [B, N]. Unweighted counts stay below 2^24, where float32 is exact."""
    batch, heads, queries, image_tokens = maps[0][0].shape
    # Image tokens of all heads side by side, layers apart: one layer's comparisons fit a CPU's cache.
    layers = [(layer.transpose(1, 2).reshape(batch, queries, -1), weight) for layer, weight in maps]
    total = sum(weight for _, weight in maps) * heads
    if image_weights is None:
        voices = None
        columns: float | torch.Tensor = total * image_tokens
        points = torch.full((1, queries), total * image_tokens)
    else:
        voices = image_weights[:, None].expand(-1, heads, -1).flatten(1)
        columns = (total * image_weights.sum(1))[:, None, None]
        points = columns[:, :, 0].expand(-1, queries)
    groups, size = 1, queries
    while size % 2 == 0:
        half = size // 2
        wins = _sum([_wins_of_second_half(layer, voices, groups, half) for layer, _ in layers], layers)
        # What the later query does not win outright the earlier one wins: ties go to the lower index.
        gained = torch.stack([columns * half - wins.sum(2), wins.sum(3)], 2)
        points = points + gained.reshape(batch, queries)
        groups, size = 2 * groups, half
    if size > 1:  # groups of odd size: all their pairs at once, each counted where the later query comes first
        wins = _sum([_wins_within(layer, voices, groups, size) for layer, _ in layers], layers)
        later = torch.ones(size, size).tril(-1)
        every = columns[:, :, None] if isinstance(columns, torch.Tensor) else columns
        gained = (wins * later).sum(3) + ((every - wins) * later).sum(2)
        points = points + gained.reshape(batch, queries)
    return points


def _sum(wins: list[torch.Tensor], layers: list[tuple[torch.Tensor, float]]) -> torch.Tensor:
    return torch.stack([count if weight == 1 else weight * count for count, (_, weight) in zip(wins, layers)]).sum(0)


def _wins_of_second_half(rows: torch.Tensor, voices: torch.Tensor | None, groups: int, half: int) -> torch.Tensor:
    """[B, groups, a, b]: in how many columns query a of a group's second half exceeds query b of its first."""
    first, second = rows.reshape(rows.shape[0], groups, 2, half, -1).split(1, 2)
    return _count(second.transpose(2, 3) > first, voices)


def _wins_within(rows: torch.Tensor, voices: torch.Tensor | None, groups: int, size: int) -> torch.Tensor:
    """[B, groups, a, b]: in how many columns query a of a group exceeds query b."""
    group = rows.reshape(rows.shape[0], groups, size, -1)
    return _count(group[:, :, :, None] > group[:, :, None], voices)


def _count(won: torch.Tensor, voices: torch.Tensor | None) -> torch.Tensor:
    """Columns won, each counting 1 or as its voice [B, columns] says."""
    if voices is None:
        return won.float().sum(-1)
    return (won.float() @ voices[:, None, None, :, None])[..., 0]
