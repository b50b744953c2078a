"""A vision encoder that prunes image tokens inside itself, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from catp.export.encoder_pruning import make_rule
from catp.export.encoder_pruning.guidance import Guidance
from catp.export.graphs import Graph
from catp.export.graphs.pruned_vision_encoder import PrunedVisionEncoder, graph
from catp.export.image_encoders.base import ImageEmbeds
from catp.export.image_encoders.pruned_reference import PrunedEmbeds, encode
from catp.export.image_encoders.sizes import pair
from catp.export.language_models.base import set_parameters
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec


class PrunedEncoder:
    """vision_encoder, with a schedule or a temperature among its inputs.

    Args:
        side: see `ImageEncoder.side`.
        spec: as the manifest will have it.
        guidance: MADTP's, for a rule that reads it.
        scorers: a taught rule's, float32 [L, W], likewise.
        diagnostics: whether the graph outputs what each layer keeps.
    """

    prunes = True

    def __init__(
        self,
        side: str,
        spec: EncoderPruningSpec,
        guidance: Guidance | None,
        scorers: torch.Tensor | None = None,
        diagnostics: bool = False,
    ) -> None:
        self.side, self.spec, self.diagnostics = side, spec, diagnostics
        self.guidance, self.scorers = guidance, scorers

    def set_dtype(self, model: Any, dtype: torch.dtype) -> None:
        set_parameters(model.vision_model, dtype)

    def graphs(self, model: Any, image_weights: bool) -> Iterator[Graph]:
        """One graph; the weight of an image token is how many patches were averaged into it."""
        height, width = pair(model.config.vision_config.image_size)
        spec = self.spec
        module = PrunedVisionEncoder(
            model.vision_model,
            make_rule(spec.rule),
            spec.merge,
            spec.layers,
            spec.form,
            self.guidance,
            self.scorers,
            image_weights,
            self.diagnostics,
        )
        yield graph(module, height, width)

    def embed(self, model: Any, pixel_values: torch.Tensor) -> ImageEmbeds:
        """The weight of an image token is how many patches were averaged into it."""
        found = self.encode(model, pixel_values)
        return ImageEmbeds(found.embeds, torch.nn.functional.pad(found.sizes, (1, 0), value=1.0), found)

    def encode(self, model: Any, pixel_values: torch.Tensor) -> PrunedEmbeds:
        """The encoder with the default schedule or temperature, by plain PyTorch and numpy."""
        spec = self.spec
        return encode(
            model.vision_model,
            pixel_values,
            spec.rule,
            spec.merge,
            spec.layers,
            spec.kept_tokens,
            spec.temperature,
            self.guidance,
            self.scorers,
        )

    @contextmanager
    def standing_in(self, model: Any) -> Iterator[None]:
        """While it lasts, Hugging Face's own methods of `model` see what this encoder sees."""

        def forward(pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
            embeds = self.encode(model, pixel_values).embeds
            cls = embeds[:, 0]
            pooled = vision_model.post_layernorm(cls) if hasattr(vision_model, "pre_layrnorm") else cls
            return BaseModelOutputWithPooling(last_hidden_state=embeds, pooler_output=pooled)

        vision_model = model.vision_model
        vision_model.forward = forward
        try:
            yield
        finally:
            del vision_model.forward
