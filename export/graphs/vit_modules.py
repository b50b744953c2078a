"""Modules of Hugging Face's ViTs under the names that each family gives them: those of BLIP and BLIP-2, and CLIP's."""

from __future__ import annotations

from typing import Any

import torch


def is_clip(vision_model: Any) -> bool:
    """Whether it has a layer norm before its layers, and the last one for CLS alone."""
    return hasattr(vision_model, "pre_layrnorm")


def begin(vision_model: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """The first layer's input [B, 1+N, W], of float32 [B, 3, H, W]."""
    hidden = vision_model.embeddings(pixel_values)
    return vision_model.pre_layrnorm(hidden) if is_clip(vision_model) else hidden


def finish(vision_model: Any, hidden: torch.Tensor) -> torch.Tensor:
    """Image embeddings [B, I, W], of the last layer's result."""
    return hidden if is_clip(vision_model) else vision_model.post_layernorm(hidden)


def project(attention: Any, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values, each [B, H, L, d], of [B, L, W]."""
    batch, length, width = normed.shape
    heads = attention.num_heads
    if hasattr(attention, "qkv"):
        split = attention.qkv(normed).reshape(batch, length, 3, heads, width // heads)
        queries, keys, values = split.permute(2, 0, 3, 1, 4).unbind(0)
        return queries, keys, values
    queries, keys, values = (
        part(normed).reshape(batch, length, heads, width // heads).transpose(1, 2)
        for part in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return queries, keys, values


def close(attention: Any, attended: torch.Tensor) -> torch.Tensor:
    """The projection of what heads gave, [B, L, W]."""
    return attention.projection(attended) if hasattr(attention, "projection") else attention.out_proj(attended)
