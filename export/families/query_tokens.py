"""Families that describe an image by query tokens, some of which are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from catp.export.families.base import Family
from catp.export.graphs import Graph, qformer_voting
from catp.export.image_encoders.sizes import image_tokens
from catp.export.language_models.base import set_parameters
from catp.export.voting.base import VotingMethod


class QueryTokens(Family):
    """A ViT, a Q-Former and a projection into a language model."""

    def set_dtype(self, model: Any, dtype: torch.dtype) -> None:
        # The Q-Former stays float32, as transformers keeps it when it loads BLIP-2 in half precision.
        super().set_dtype(model, dtype)
        set_parameters(model.language_projection, dtype)

    def cross_layers(self, model: Any) -> int:
        return len(cross_attention(model.qformer))

    def graphs(
        self, model: Any, method: VotingMethod, compared: Sequence[VotingMethod] | None = None
    ) -> Iterator[Graph]:
        config = model.config
        voting_class = qformer_voting.InstructedVoting if self.reads_instruction else qformer_voting.QFormerVoting
        voting = voting_class(model.query_tokens, model.qformer, self.projection(model), method, compared)
        yield from self.image_encoder.graphs(model, voting.reads_image_weights)
        dtype = next(model.vision_model.parameters()).dtype
        tokens, width = image_tokens(config), config.vision_config.hidden_size
        yield qformer_voting.graph(voting, tokens, width, dtype, self.image_encoder.prunes)
        yield from self.text_graphs(model)

    def projection(self, model: Any) -> torch.nn.Module:
        """The module that a query token passes last, before it leaves the Q-Former graph."""
        return model.language_projection

    def text_graphs(self, model: Any) -> Iterator[Graph]:
        """The graphs after the Q-Former."""
        yield from self.language.graphs(self.language_model(model))


def cross_attention(qformer: Any) -> list[torch.nn.Module]:
    """The attention modules of the Q-Former that read the image, layer by layer."""
    return [layer.crossattention.attention for layer in qformer.encoder.layer if layer.has_cross_attention]
