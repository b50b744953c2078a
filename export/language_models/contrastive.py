"""CLIP's text encoder and projections: one vector for each text, one for each picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from catp.export.graphs import Graph, clip_text, image_embedding, text_embedding
from catp.export.language_models.base import set_parameters
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError


class Contrastive:
    """image_embedding and text_embedding; the language model is the whole model."""

    kind: LanguageKind = "contrastive"
    accepts = "CLIP's own text encoder"

    def check_config(self, config: Any, name: str) -> None:
        if not isinstance(config.eos_token_id, int):
            raise UsageError(
                f"model {name}: text_config.eos_token_id in config.json is {config.eos_token_id}; CLIP reads a text's "
                "vector at the one token that ends it: give its id"
            )

    def check(self, lm: Any, name: str) -> None:
        pass

    def set_dtype(self, lm: Any, dtype: torch.dtype) -> None:
        for part in (lm.text_model, lm.visual_projection, lm.text_projection):
            set_parameters(part, dtype)

    def graphs(self, lm: Any) -> Iterator[Graph]:
        # The vision encoder's last layer norm is for CLS alone: patches leave the encoder without it.
        module = image_embedding.ImageEmbedding(lm.visual_projection, lm.vision_model.post_layernorm)
        yield image_embedding.graph(module, lm.config.vision_config.hidden_size)
        yield text_embedding.graph(clip_text.TextEmbedding(lm), keeps_float32=False)

    def max_positions(self, lm: Any) -> int | None:
        return lm.config.text_config.max_position_embeddings
