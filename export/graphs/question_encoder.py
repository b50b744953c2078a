"""question_encoder.onnx: a question and image tokens to the keys and values that the answer's cross-attention reads.

    input_ids int64 [B,S], image_embeds [B,I,Dv], lengths int64 [B]
      -> cross_key_values.{i}.key/.value [B,H,S,d], one pair for every decoder layer

They are computed once per answer, here, because they don't change while it grows. Questions of different length are
padded on the right; `lengths` counts each row's own tokens, and no token sees a pad. How many image tokens there are is
free: an encoder may have pruned some.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export.graphs import Graph, interface_dtype
from catp.export.graphs.image_keys import CrossProjections
from catp.export.graphs.language_model import cache_names
from catp.export.graphs.masks import seen_by_all
from catp.export.graphs.text_encoder import CROSS


class QuestionEncoder(CrossProjections):
    """BLIP's text encoder, and the projections of its result into every decoder layer's keys and values."""

    def __init__(self, model: Any) -> None:
        super().__init__(model.text_decoder)
        self.text_encoder = model.text_encoder

    def forward(
        self, input_ids: torch.Tensor, image_embeds: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        hidden = self.text_encoder.embeddings(input_ids, position_ids=torch.arange(input_ids.shape[1])[None])
        image_embeds = image_embeds.to(hidden.dtype)
        visible = seen_by_all(torch.arange(input_ids.shape[1]) < lengths[:, None])
        for layer in self.text_encoder.encoder.layer:
            hidden = layer(hidden, image_embeds, attention_mask=visible)
        return self.project(hidden)


def graph(model: Any) -> Graph:
    batch, question, tokens = (torch.export.Dim(name) for name in ("batch", "question", "image_tokens"))
    dtype = next(model.text_encoder.parameters()).dtype
    return Graph(
        name="question_encoder",
        module=QuestionEncoder(model),
        example=(
            torch.ones(2, 5, dtype=torch.long),
            torch.zeros(2, 7, model.config.vision_config.hidden_size, dtype=interface_dtype(dtype)),
            torch.tensor([5, 4]),
        ),
        input_names=["input_ids", "image_embeds", "lengths"],
        output_names=cache_names(model.config.text_config.num_hidden_layers, CROSS),
        dynamic_shapes={
            "input_ids": {0: batch, 1: question},
            "image_embeds": {0: batch, 1: tokens},
            "lengths": {0: batch},
        },
    )
