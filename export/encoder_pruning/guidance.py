"""MADTP's guidance: the dictionary, and what a layer's tokens are mapped by before they are looked up in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TokenMap:
    """CLIP's `q_map` of one layer, x to x weight^T + bias: tokens of W numbers to those of an entry, S."""

    weight: torch.Tensor  # float32 [S, W]
    bias: torch.Tensor  # float32 [S]


@dataclass(frozen=True)
class Guidance:
    """The guidance of an encoder (arXiv 2403.02991, section 3.2)."""

    space_dict: torch.Tensor  # float32 [T, S]
    maps: tuple[TokenMap, ...] | None = None  # one for each layer, as MADTP's CLIP has them; None: tokens as they are

    def matrix(self, layer: int) -> torch.Tensor:
        """float32 [W, T]: by which the layer's tokens are multiplied. A map and the dictionary become one matrix."""
        if self.maps is None:
            return self.space_dict.float().t().contiguous()
        return (self.space_dict @ self.maps[layer].weight).t().contiguous()

    def offset(self, layer: int) -> torch.Tensor | None:
        """float32 [T]: what is added to the product; None: nothing."""
        return None if self.maps is None else self.space_dict @ self.maps[layer].bias


class LayerGuides(torch.nn.Module):
    """The products of an encoder's layers with the dictionary, as a part of its graph; float32 whatever its precision.

    Args:
        layers: those that prune.
    """

    def __init__(self, guidance: Guidance, layers: tuple[int, ...]) -> None:
        super().__init__()
        self.shared = guidance.maps is None
        if self.shared:
            self.register_buffer("guide", guidance.matrix(0))
            return
        for layer in layers:
            self.register_buffer(f"guide_{layer}", guidance.matrix(layer))
            self.register_buffer(f"offset_{layer}", guidance.offset(layer))

    def forward(self, layer: int, tokens: torch.Tensor) -> torch.Tensor:
        """M, float32 [B, N, T], of a layer's input [B, N, W]."""
        if self.shared:
            return tokens.float() @ self.get_buffer("guide")
        return tokens.float() @ self.get_buffer(f"guide_{layer}") + self.get_buffer(f"offset_{layer}")
