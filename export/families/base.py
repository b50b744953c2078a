"""The interface of a model family: how it is loaded, and which graphs it is split into."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import AutoImageProcessor

from catp.export.graphs import Graph, qformer_voting
from catp.export.image_encoders import ImageEncoder
from catp.export.image_encoders.sizes import image_tokens
from catp.export.language_models import LanguagePart
from catp.export.language_models.base import set_parameters
from catp.export.voting.base import VotingMethod


class Family:
    """A ViT, a Q-Former and a projection into a language model: one architecture of Hugging Face's.

    Args:
        image_encoder: the part before the Q-Former.
        language: the language model.
    """

    title: str  # for people: "BLIP-2"
    model_type: str  # Hugging Face's, of the whole model
    reads_instruction = False  # whether its Q-Former reads the prompt too
    frames: int | None = None  # of the videos that it was made for; None: it takes images
    sees = "image"  # in the names of the placeholder that stands for a query token among a prompt's ids

    def __init__(self, image_encoder: ImageEncoder, language: LanguagePart) -> None:
        self.image_encoder = image_encoder
        self.language = language

    @property
    def name(self) -> str:
        """For people: "BLIP-2 with a decoder-only language model"."""
        article = "an" if self.language.kind[0] in "aeiou" else "a"
        return f"{self.title} with {article} {self.language.kind} language model"

    def model_class(self) -> type[Any]:
        """The Hugging Face class that `from_pretrained` is called on."""
        raise NotImplementedError

    def image_processor(self, model: str, source: Mapping[str, Any]) -> Any:
        """The image processor, as `from_pretrained(model, **source)` finds it."""
        return AutoImageProcessor.from_pretrained(model, **source, backend="pil")

    def check(self, model: Any, name: str) -> None:
        """Raises UsageError where this checkpoint has a part that the graphs can't express."""
        self.language.check(model.language_model, name)

    def set_dtype(self, model: Any, dtype: torch.dtype) -> None:
        """Turns the weights of the parts whose graphs have the bundle's precision into `dtype`, in place."""
        # The Q-Former stays float32, as transformers keeps it when it loads BLIP-2 in half precision.
        self.image_encoder.set_dtype(model, dtype)
        set_parameters(model.language_projection, dtype)
        self.language.set_dtype(model.language_model, dtype)

    def cross_layers(self, model: Any) -> int:
        """How many of the Q-Former's layers read the image."""
        return len(cross_attention(model.qformer))

    def graphs(
        self, model: Any, method: VotingMethod, compared: Sequence[VotingMethod] | None = None
    ) -> Iterator[Graph]:
        """The graphs of the bundle, in the order of the pipeline. Each may be dropped before the next is made.

        Args:
            compared: with diagnostics, the methods whose scores the Q-Former graph outputs as well.
        """
        config = model.config
        voting_class = qformer_voting.InstructedVoting if self.reads_instruction else qformer_voting.QFormerVoting
        voting = voting_class(model.query_tokens, model.qformer, self.projection(model), method, compared)
        yield from self.image_encoder.graphs(model, voting.reads_image_weights)
        dtype = next(model.vision_model.parameters()).dtype
        yield qformer_voting.graph(voting, image_tokens(config), config.vision_config.hidden_size, dtype)
        yield from self.text_graphs(model)

    def projection(self, model: Any) -> torch.nn.Module:
        """The module that a query token passes last, before it leaves the Q-Former graph."""
        return model.language_projection

    @property
    def generates_text(self) -> bool:
        return self.language.kind != "none"

    def max_positions(self, model: Any) -> int | None:
        """Positions of the text, with the query tokens where these have positions; None: no end to them."""
        return self.language.max_positions(model.language_model)

    def text_graphs(self, model: Any) -> Iterator[Graph]:
        """The graphs after the Q-Former."""
        yield from self.language.graphs(model.language_model)


def cross_attention(qformer: Any) -> list[torch.nn.Module]:
    """The attention modules of the Q-Former that read the image, layer by layer."""
    return [layer.crossattention.attention for layer in qformer.encoder.layer if layer.has_cross_attention]
