"""The interface of a voting method, and the evidence that it reads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch

from catp.runtime.errors import UsageError


@dataclass(frozen=True)
class Evidence:
    """Attention and embeddings that a vote reads, float32; B images, N queries, I image tokens.

    What precedes the first cross-attention is the same for every image, and has 1 in place of B.
    """

    cross_attention: list[torch.Tensor | None]  # probabilities [B, H, N, I] by cross-attention layer, where asked for
    self_attention: list[torch.Tensor]  # probabilities [B, H, N, N] of all Q-Former layers, where asked for
    query_embeds: torch.Tensor  # [B, N, D], the Q-Former's output
    image_embeds: torch.Tensor  # [B, I, Dv]
    image_weights: torch.Tensor | None  # [B, I], where asked for: attention, mean about 1, or patches in a token


class VotingMethod(ABC):
    """Scores the query tokens inside the Q-Former graph; the highest `num_kept` are kept, ties by lower index.

    A method is a frozen dataclass whose fields are its options, as --method takes them and the manifest records them.
    To add one: write its file, and name it in METHODS and in the manifest's `Method`.
    """

    name: ClassVar[str]
    reads_self_attention: ClassVar[bool] = False

    @property
    def reads_image_weights(self) -> bool:
        return False

    def cross_layers(self, available: int) -> tuple[int, ...]:
        """Which of the Q-Former's `available` cross-attention layers must materialise their probabilities.

        Raises:
            UsageError: the options name layers that there aren't.
        """
        return ()

    @abstractmethod
    def scores(self, evidence: Evidence) -> torch.Tensor:
        """float32 [B, N], none negative, so that a share of their sum means something; B may be 1."""


def choose_layers(layers: str, weights: tuple[float, ...], available: int) -> dict[int, float]:
    """Weight by cross-attention layer, of those that count.

    Args:
        layers: "all", "first", "last" or numbers from 0 separated by commas.
        weights: one per layer chosen; none: 1 each.

    Raises:
        UsageError: not layers of this checkpoint, or another number of weights, or none is positive.
    """
    named = {"all": tuple(range(available)), "first": (0,), "last": (available - 1,)}
    try:
        chosen = named[layers] if layers in named else tuple(int(part) for part in layers.split(","))
    except ValueError:
        raise UsageError(f"--layers {layers!r}: accepted: all, first, last, or numbers such as 0,2") from None
    if any(not 0 <= layer < available for layer in chosen) or len(set(chosen)) != len(chosen):
        raise UsageError(f"--layers {layers}: this checkpoint has cross-attention layers 0 to {available - 1}")
    weights = weights or (1.0,) * len(chosen)
    if len(weights) != len(chosen):
        raise UsageError(
            f"--layer-weights: {len(weights)} numbers for {len(chosen)} cross-attention layers; give one each"
        )
    if not all(0 <= weight < float("inf") for weight in weights) or not any(weights):
        raise UsageError(
            f"--layer-weights {','.join(map(str, weights))}: give numbers from 0, at least one of them above"
        )
    return {layer: weight for layer, weight in zip(chosen, weights) if weight}


def weighted_maps(evidence: Evidence, layers: str, weights: tuple[float, ...]) -> list[tuple[torch.Tensor, float]]:
    """The maps of the layers that count, each with its weight."""
    maps = evidence.cross_attention
    chosen = []
    for layer, weight in choose_layers(layers, weights, len(maps)).items():
        attention = maps[layer]
        assert attention is not None, "cross_layers() names every layer that scores() reads"
        chosen.append((attention, weight))
    return chosen
