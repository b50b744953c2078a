"""image_text_matching.onnx: whether a text fits an image, from the queries that the image voted for.

    image_embeds [B,I,Dv], kept_indices int64 [B,k], text_ids, text_mask int64 [B,T] -> match_logits float32 [B,2]

Only the kept queries enter the Q-Former, so it computes k + T tokens, not N + T. Queries have no positions: which of
them are there is all that pruning changes.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export.graphs import Graph, interface_dtype
from catp.export.graphs.masks import seen_by_all
from catp.export.graphs.text_embedding import TEXT


class ImageTextMatching(torch.nn.Module):
    """Kept queries and words read the image and each other; the head's mean over queries says no or yes."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.query_tokens = model.query_tokens
        self.embeddings = model.embeddings
        self.qformer = model.qformer
        self.head = model.itm_head

    def forward(
        self, image_embeds: torch.Tensor, kept_indices: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor
    ) -> torch.Tensor:
        queries = self.query_tokens[0][kept_indices]
        kept = queries.shape[1]
        visible = torch.cat([torch.ones_like(kept_indices, dtype=torch.bool), text_mask.bool()], 1)
        hidden = self.qformer(
            query_embeds=self.embeddings(input_ids=text_ids, query_embeds=queries),
            query_length=kept,
            attention_mask=seen_by_all(visible),
            encoder_hidden_states=image_embeds,
        ).last_hidden_state
        return self.head(hidden[:, :kept]).mean(1)


def graph(model: Any, image_tokens: int, any_tokens: bool = False) -> Graph:
    """Args: `any_tokens`: whether it takes another number of image tokens as well."""
    batch, kept, length = (torch.export.Dim(name) for name in ("batch", "num_kept", "text"))
    dtype = interface_dtype(next(model.vision_model.parameters()).dtype)
    return Graph(
        name="image_text_matching",
        module=ImageTextMatching(model),
        example=(
            torch.zeros(2, image_tokens, model.config.vision_config.hidden_size, dtype=dtype),
            torch.tensor([[0, 2, 3]] * 2),
            torch.ones(2, 5, dtype=torch.long),
            torch.ones(2, 5, dtype=torch.long),
        ),
        input_names=["image_embeds", "kept_indices", *TEXT],
        output_names=["match_logits"],
        dynamic_shapes={
            "image_embeds": {0: batch, **({1: torch.export.Dim("image_tokens")} if any_tokens else {})},
            "kept_indices": {0: batch, 1: kept},
            **{name: {0: batch, 1: length} for name in TEXT},
        },
        keeps_float32=True,
    )
