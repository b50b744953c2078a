"""Operations of the vision encoder, counted from how many tokens reach each layer."""

from __future__ import annotations

from typing import Any

import torch
from transformers import BlipForQuestionAnswering

from catp.export.demo.vqa.pruning import TokenPruning


def vision_macs(model: BlipForQuestionAnswering, pruning: TokenPruning | None) -> torch.Tensor:
    """Multiply-adds of one picture, float64 [B] ([1] without pruning): matrix products, those of the guidance included.

    Args:
        model: whose vision encoder is meant.
        pruning: what happened to each picture, or None for the dense encoder.
    """
    config: Any = model.config.vision_config
    width, layers = config.hidden_size, config.num_hidden_layers
    patches = (config.image_size // config.patch_size) ** 2
    everything = torch.tensor([1 + patches])
    before = pruning.before if pruning else [everything] * layers
    after = pruning.after if pruning else before
    macs = torch.full((len(before[0]),), float(patches * 3 * config.patch_size**2 * width), dtype=torch.float64)
    for attended, mixed in zip(before, after):
        n = attended.double()
        macs = macs + n * 4 * width**2 + n**2 * 2 * width + mixed.double() * 2 * width * config.intermediate_size
        if pruning:
            macs = macs + (n - 1) * width * len(pruning.space_dict)
    return macs
