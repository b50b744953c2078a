"""ToMe's merge: each token that is not kept is averaged into the kept one whose key is most like its own."""

from __future__ import annotations

import torch

from catp.export.encoder_pruning.merges.base import Chosen, Tokens

UNLIKE = -2.0
"""Below every cosine."""


def unit_keys(keys: torch.Tensor) -> torch.Tensor:
    """Mean over heads of the keys of all tokens but CLS, of length 1: float32 [B, N, d], of keys [B, H, 1+N, d]."""
    mean = keys[:, :, 1:].float().mean(1)
    return mean / (mean.square().sum(2, keepdim=True).sqrt() + 1e-8)


class Nearest:
    """Averages by the number of patches (arXiv 2210.09461, section 3), as a product with a matrix of zeros and ones:
    neither ONNX nor TensorRT has a scatter that takes means."""

    counts_sizes = True
    adds = 0

    def __call__(self, tokens: Tokens, chosen: Chosen) -> Tokens:
        assert tokens.sizes is not None, "counts_sizes"
        places = torch.arange(tokens.embeds.shape[1])
        keys = unit_keys(chosen.keys)
        likeness = chosen.of(keys) @ keys.transpose(1, 2)  # [B, k, N]
        if chosen.receivers is not None:
            takes = chosen.of(chosen.receivers.to(likeness.dtype))
            likeness = torch.where(takes[:, :, None] > 0, likeness, UNLIKE)
        itself = chosen.indices[:, :, None] == places
        nearest = likeness.argmax(1)[:, None] == torch.arange(chosen.indices.shape[1])[:, None]
        into = torch.where(chosen.kept[:, None], itself.float(), nearest.float())  # [B, k, N]
        sizes = (into @ tokens.sizes[:, :, None])[:, :, 0]
        shares = into * tokens.sizes[:, None] / sizes[:, :, None]
        merged = shares.to(tokens.embeds.dtype) @ tokens.embeds
        positions = chosen.of(tokens.positions)
        return Tokens(merged, positions, sizes, positions.gather(1, into.argmax(1)))
