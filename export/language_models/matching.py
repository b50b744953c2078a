"""BLIP's text encoder that scores texts: alone by a projection, and together with an image by a head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from catp.export.graphs import Graph, blip_matching, image_embedding, text_embedding
from catp.export.language_models.base import set_parameters
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError


class Matching:
    """image_embedding, text_embedding and image_text_matching; the language model is the whole model."""

    kind: LanguageKind = "matching"
    accepts = "BLIP's own text encoder"

    def check_config(self, config: Any, name: str) -> None:
        if not config.is_decoder:
            raise UsageError(
                f"model {name}: text_config.is_decoder in config.json is false, so its text encoder reads no image"
            )

    def check(self, lm: Any, name: str) -> None:
        pass

    def set_dtype(self, lm: Any, dtype: torch.dtype) -> None:
        for part in (lm.text_encoder, lm.vision_proj, lm.text_proj, lm.itm_head):
            set_parameters(part, dtype)

    def graphs(self, lm: Any) -> Iterator[Graph]:
        yield image_embedding.graph(image_embedding.ImageEmbedding(lm.vision_proj), lm.config.vision_config.hidden_size)
        yield text_embedding.graph(blip_matching.TextEmbedding(lm.text_encoder, lm.text_proj), keeps_float32=False)
        yield blip_matching.matching_graph(lm)

    def max_positions(self, lm: Any) -> int | None:
        return lm.config.text_config.max_position_embeddings
