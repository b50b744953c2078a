"""Masks of attention that graphs make of what they are given."""

from __future__ import annotations

import torch


def seen_by_all(visible: torch.Tensor) -> torch.Tensor:
    """bool [B,1,L,L] of bool [B,L]: a row for every token that looks, as ONNX Runtime's Attention wants it."""
    return visible[:, None, None, :].expand(-1, -1, visible.shape[1], -1)
