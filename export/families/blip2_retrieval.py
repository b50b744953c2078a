"""BLIP-2 for image-text retrieval: no language model, the Q-Former reads the text and scores it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import Blip2ForImageTextRetrieval

from catp.export.families.query_tokens import QueryTokens
from catp.export.graphs import Graph, image_text_matching, text_embedding
from catp.export.image_encoders.sizes import image_tokens
from catp.runtime.errors import UsageError


class UnitProjection(torch.nn.Module):
    """A projection to vectors of length 1."""

    def __init__(self, projection: torch.nn.Module) -> None:
        super().__init__()
        self.projection = projection

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.projection(embeds), dim=-1)


class Blip2Retrieval(QueryTokens):
    """Contrastive scores compare a text with the kept tokens that leave the Q-Former; matching reads both again."""

    title = "BLIP-2"
    model_type = "blip-2"
    name = "BLIP-2 for image-text retrieval"

    def model_class(self) -> type[Blip2ForImageTextRetrieval]:
        return Blip2ForImageTextRetrieval

    def check(self, model: Any, name: str) -> None:
        if not model.config.qformer_config.use_qformer_text_input:
            raise UsageError(f"model {name}: its Q-Former reads no text (use_qformer_text_input is false)")

    def set_dtype(self, model: Any, dtype: torch.dtype) -> None:
        # All that follows the vision encoder is the Q-Former and its heads, which stay float32.
        self.image_encoder.set_dtype(model, dtype)

    def projection(self, model: Any) -> torch.nn.Module:
        return UnitProjection(model.vision_projection)

    def max_positions(self, model: Any) -> int | None:
        return model.config.qformer_config.max_position_embeddings

    def text_graphs(self, model: Any) -> Iterator[Graph]:
        yield text_embedding.graph(text_embedding.TextEmbedding(model), keeps_float32=True)
        yield image_text_matching.graph(model, image_tokens(model.config), self.image_encoder.prunes)
