"""text_embedding.onnx of CLIP: a causal text encoder, whose state at the token that ends the text is projected."""

from __future__ import annotations

from typing import Any

import torch

from catp.export.graphs.masks import seen_by_all

FORMER_END = 2
"""The end token that configurations name from before transformers knew the right one: then it is the largest id."""


class TextEmbedding(torch.nn.Module):
    """Words, text encoder and projection; no token sees what follows it, or a pad."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.text_model = model.text_model
        self.projection = model.text_projection

    def forward(self, text_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(text_ids.shape[1])
        hidden = self.text_model.embeddings(input_ids=text_ids, position_ids=places[None])
        earlier = places[None, :] <= places[:, None]
        visible = seen_by_all(text_mask.bool()) & earlier
        for layer in self.text_model.encoder.layers:
            hidden = layer(hidden, visible)
        hidden = self.text_model.final_layer_norm(hidden)
        place = self.end(text_ids, text_mask)
        pooled = hidden.gather(1, place[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
        return torch.nn.functional.normalize(self.projection(pooled).float(), dim=-1)

    def end(self, text_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        """int64 [B]: the place of the token that ends each text, the first of them."""
        end = self.text_model.config.eos_token_id
        # The first of the highest, pads apart: of the ids themselves, or of whether they are the end.
        found = text_ids if end == FORMER_END else (text_ids == end).to(text_ids.dtype)
        return (found * text_mask).float().argmax(1)
