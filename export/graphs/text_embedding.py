"""text_embedding.onnx: text_ids, text_mask int64 [B,T] -> text_embeds float32 [B,Dt] of length 1.

The text side of contrastive scores. Of BLIP-2, the Q-Former reads a text without queries or image, and its first token
is projected; other families have text encoders of their own.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export.graphs import Graph
from catp.export.graphs.masks import seen_by_all

TEXT = ("text_ids", "text_mask")


class TextEmbedding(torch.nn.Module):
    """Words, Q-Former and projection; no token sees a pad."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.embeddings = model.embeddings
        self.qformer = model.qformer
        self.projection = model.text_projection

    def forward(self, text_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        hidden = self.qformer(
            query_embeds=self.embeddings(input_ids=text_ids),
            query_length=0,
            attention_mask=seen_by_all(text_mask.bool()),
        ).last_hidden_state
        return torch.nn.functional.normalize(self.projection(hidden[:, 0]), dim=-1)


def graph(module: torch.nn.Module, keeps_float32: bool) -> Graph:
    """Args: `module`: TextEmbedding, or another one that takes and gives the same."""
    batch, length = torch.export.Dim("batch"), torch.export.Dim("text")
    return Graph(
        name="text_embedding",
        module=module,
        example=(torch.ones(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)),
        input_names=[*TEXT],
        output_names=["text_embeds"],
        dynamic_shapes={name: {0: batch, 1: length} for name in TEXT},
        keeps_float32=keeps_float32,
    )
