"""T5's relative position bias, from positions that are inputs.

Hugging Face derives distances from the places of tokens in the sequence. Here they come from explicit positions, so
that tokens can keep the distances they had before others between them were pruned.
"""

from __future__ import annotations

from typing import Any

import torch


class DistanceBias(torch.nn.Module):
    """The bias of every head for every distance; distances beyond the largest share its bucket, as in T5."""

    buckets: torch.Tensor

    def __init__(self, attention: Any, bidirectional: bool) -> None:
        """Args: `attention`: the T5Attention of a stack's first block, which has the learned biases."""
        super().__init__()
        self.farthest = attention.relative_attention_max_distance
        self.biases = attention.relative_attention_bias
        buckets = attention._relative_position_bucket(
            torch.arange(-self.farthest, self.farthest + 1),
            bidirectional=bidirectional,
            num_buckets=attention.relative_attention_num_buckets,
            max_distance=self.farthest,
        )
        self.register_buffer(
            "buckets", buckets, persistent=False
        )  # by Hugging Face: looked up, not computed, in a graph

    def forward(self, distances: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
        """[B,H,S,M]: what is added to the logits, the dtype's lowest number where nothing is to be seen.

        Args:
            distances: int64 [B,S,M], position of the key less position of the query.
            visible: bool, broadcast to [B,H,S,M].
        """
        places = distances.clamp(-self.farthest, self.farthest) + self.farthest
        bias = self.biases(self.buckets[places]).permute(0, 3, 1, 2)
        return bias.masked_fill(~visible, torch.finfo(bias.dtype).min)
