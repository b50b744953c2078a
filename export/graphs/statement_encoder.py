"""statement_encoder.onnx: a statement and the tokens of two images to whether it is true.

    text_ids, text_mask int64 [B,T], first_image_embeds, second_image_embeds [B,I,Dv] -> truth_logits float32 [B,2]

The logits are those of false and of true. Statements of different length are padded on the right, and no token sees a
pad. How many image tokens there are is free, the same for both images: an encoder may have pruned some.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export.graphs import Graph, interface_dtype
from catp.export.graphs.masks import seen_by_all
from catp.export.graphs.text_embedding import TEXT
from catp.export.nlvr.model import read_both

IMAGES = ("first_image_embeds", "second_image_embeds")


class StatementEncoder(torch.nn.Module):
    """The text encoder, which reads both images side by side, and the head over its first token."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_encoder = model.text_encoder
        self.head = model.cls_head

    def forward(
        self,
        text_ids: torch.Tensor,
        text_mask: torch.Tensor,
        first_image_embeds: torch.Tensor,
        second_image_embeds: torch.Tensor,
    ) -> torch.Tensor:
        hidden = self.text_encoder.embeddings(text_ids, position_ids=torch.arange(text_ids.shape[1])[None])
        first, second = first_image_embeds.to(hidden.dtype), second_image_embeds.to(hidden.dtype)
        visible = seen_by_all(text_mask.bool())
        for layer in self.text_encoder.encoder.layer:
            hidden = read_both(layer, hidden, visible, first, second)
        return self.head(hidden[:, 0]).float()


def graph(model: Any) -> Graph:
    batch, length, tokens = (torch.export.Dim(name) for name in ("batch", "text", "image_tokens"))
    dtype = interface_dtype(next(model.text_encoder.parameters()).dtype)
    # Of its own for each input: two that are one tensor become one input of the traced graph.
    words = (torch.ones(2, 5, dtype=torch.long) for _ in TEXT)
    images = (torch.zeros(2, 7, model.config.vision_config.hidden_size, dtype=dtype) for _ in IMAGES)
    return Graph(
        name="statement_encoder",
        module=StatementEncoder(model),
        example=(*words, *images),
        input_names=[*TEXT, *IMAGES],
        output_names=["truth_logits"],
        dynamic_shapes={
            **{name: {0: batch, 1: length} for name in TEXT},
            **{name: {0: batch, 1: tokens} for name in IMAGES},
        },
    )
