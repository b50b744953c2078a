"""The vision encoder as the checkpoint has it: every image token passes through every layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from catp.export.graphs import Graph, vision_encoder
from catp.export.image_encoders.attention_maps import attention_of
from catp.export.image_encoders.base import ImageEmbeds
from catp.export.image_encoders.sizes import pair
from catp.export.language_models.base import set_parameters


class PlainEncoder:
    """vision_encoder.

    Args:
        side: see `ImageEncoder.side`.
    """

    prunes = False

    def __init__(self, side: str = "voted-queries") -> None:
        self.side = side

    def set_dtype(self, model: Any, dtype: torch.dtype) -> None:
        set_parameters(model.vision_model, dtype)

    def graphs(self, model: Any, image_weights: bool) -> Iterator[Graph]:
        height, width = pair(model.config.vision_config.image_size)
        yield vision_encoder.graph(model.vision_model, height, width, image_weights)

    @torch.no_grad()
    def embed(self, model: Any, pixel_values: torch.Tensor) -> ImageEmbeds:
        """The weight of an image token is what it receives in the last self-attention, mean over heads."""
        with attention_of([model.vision_model.encoder.layers[-1].self_attn]) as (last,):
            embeds = model.vision_model(pixel_values).last_hidden_state
        return ImageEmbeds(embeds, last[0].float().mean(1).sum(1))

    def standing_in(self, model: Any) -> AbstractContextManager[None]:
        """Nothing to do: Hugging Face's model sees what this encoder sees."""
        return nullcontext()
