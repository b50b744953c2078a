"""qformer_voting.onnx: image_embeds [B,I,Dv], num_kept int64 [1] -> kept_indices, kept_embeds, token_scores.

`num_kept` (k) is an input, so one bundle serves every pruning ratio.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export import onnx_ops
from catp.export.graphs import Graph
from catp.export.methods import VotingMethod


class QFormerVoting(torch.nn.Module):
    """Q-Former, voting head, choice of k tokens, and the projection of just those into the language model."""

    def __init__(
        self, query_tokens: torch.Tensor, qformer: Any, projection: torch.nn.Module, method: VotingMethod
    ) -> None:
        super().__init__()
        self.query_tokens = query_tokens
        self.qformer = qformer
        self.projection = projection
        self.method = method
        self.cross_attention = [
            layer.crossattention.attention for layer in qformer.encoder.layer if layer.has_cross_attention
        ]

    def forward(self, image_embeds: torch.Tensor, num_kept: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """kept_indices int64 [B,k] ascending, kept_embeds [B,k,Dl], token_scores float32 [B,N]."""
        with onnx_ops.recorded_attention(self.cross_attention) as maps:
            # One row of queries, not B: all that precedes the first cross-attention is the same for every image,
            # so it stays a constant, and broadcasting brings the batch in where the image does.
            embeds = self.qformer(query_embeds=self.query_tokens, encoder_hidden_states=image_embeds).last_hidden_state
        scores = self.method.scores(list(maps.values()))
        kept: Any = num_kept.item()  # a symbolic int while tracing
        torch._check(kept >= 1)
        torch._check(kept <= scores.shape[1])
        best = onnx_ops.top_k(scores, num_kept, kept, largest=True)
        # Ascending order keeps the tokens in their original order. TopK sorts floats everywhere, integers not.
        order = onnx_ops.top_k(best.float(), num_kept, kept, largest=False)
        indices = best.gather(1, order)
        chosen = embeds.gather(1, indices[:, :, None].expand(-1, -1, embeds.shape[-1]))
        weight = next(self.projection.parameters())
        return indices, self.projection(chosen.to(weight.dtype)), scores


def graph(module: QFormerVoting, image_tokens: int, vision_width: int, dtype: torch.dtype) -> Graph:
    return Graph(
        name="qformer_voting",
        module=module,
        example=(torch.zeros(2, image_tokens, vision_width, dtype=dtype), torch.tensor([2])),
        input_names=["image_embeds", "num_kept"],
        output_names=["kept_indices", "kept_embeds", "token_scores"],
        dynamic_shapes={"image_embeds": {0: torch.export.Dim("batch")}, "num_kept": None},
        dimension_names={"u0": "num_kept"},  # a size read from a tensor has no name while tracing
    )
