"""text_embedding.onnx and image_text_matching.onnx of BLIP, whose text encoder reads texts alone or with an image.

    image_text_matching: image_embeds [B,I,Dv], text_ids, text_mask int64 [B,T] -> match_logits float32 [B,2]

Both read a text from its first token, [CLS], as Hugging Face's class does. How many image tokens there are is free.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export.graphs import Graph, blip_attention, interface_dtype  # noqa: F401  (traced attention)
from catp.export.graphs.masks import seen_by_all
from catp.export.graphs.text_embedding import TEXT


class _TextReader(torch.nn.Module):
    """BLIP's text encoder and what is made of its first token; no token sees a pad."""

    def __init__(self, text_encoder: Any, head: torch.nn.Module) -> None:
        super().__init__()
        self.text_encoder, self.head = text_encoder, head

    def read(self, text_ids: torch.Tensor, text_mask: torch.Tensor, image_embeds: torch.Tensor | None) -> torch.Tensor:
        """[B, D'], the head's result."""
        hidden = self.text_encoder.embeddings(text_ids, position_ids=torch.arange(text_ids.shape[1])[None])
        image_embeds = None if image_embeds is None else image_embeds.to(hidden.dtype)
        visible = seen_by_all(text_mask.bool())
        for layer in self.text_encoder.encoder.layer:
            hidden = layer(hidden, image_embeds, attention_mask=visible)
        return self.head(hidden[:, 0]).float()


class TextEmbedding(_TextReader):
    """A text read alone, projected."""

    def forward(self, text_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.read(text_ids, text_mask, None), dim=-1)


class ImageTextMatching(_TextReader):
    """A text that also reads the image; the head says no or yes."""

    def forward(self, image_embeds: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        return self.read(text_ids, text_mask, image_embeds)


def matching_graph(model: Any) -> Graph:
    batch, length, tokens = (torch.export.Dim(name) for name in ("batch", "text", "image_tokens"))
    dtype = interface_dtype(next(model.text_encoder.parameters()).dtype)
    return Graph(
        name="image_text_matching",
        module=ImageTextMatching(model.text_encoder, model.itm_head),
        example=(
            torch.zeros(2, 7, model.config.vision_config.hidden_size, dtype=dtype),
            torch.ones(2, 5, dtype=torch.long),
            torch.ones(2, 5, dtype=torch.long),
        ),
        input_names=["image_embeds", *TEXT],
        output_names=["match_logits"],
        dynamic_shapes={"image_embeds": {0: batch, 1: tokens}, **{name: {0: batch, 1: length} for name in TEXT}},
    )
