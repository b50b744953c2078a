"""The interface of a model family: how it is loaded, and which graphs it is split into."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import AutoImageProcessor, GenerationConfig

from catp.export.graphs import Graph
from catp.export.image_encoders import ImageEncoder
from catp.export.language_models import LanguagePart
from catp.export.language_models.base import StandsIn
from catp.export.voting.base import VotingMethod
from catp.runtime.bundle.chains import SCORE_TEXTS


class Family:
    """An image encoder, and what reads its tokens: one architecture of Hugging Face's.

    Args:
        image_encoder: the first part.
        language: the language model.
    """

    title: str  # for people: "BLIP-2"
    model_type: str  # Hugging Face's, of the whole model
    reads_instruction = False  # whether its Q-Former reads the prompt too
    votes = True  # whether it has query tokens to vote for
    ends_itself = False  # whether the model's code names the token that ends an answer, whatever is configured
    images_per_text = 1  # that it is asked about at a time
    frames: int | None = None  # of the videos that it was made for; None: it takes images
    placeholder: str | None = "image_token_index"
    """The configuration's field with the id that stands for a query token among a prompt's ids; None: nothing does."""

    def __init__(self, image_encoder: ImageEncoder, language: LanguagePart) -> None:
        self.image_encoder = image_encoder
        self.language = language

    @contextmanager
    def standing_in(self, model: Any) -> Iterator[None]:
        """While it lasts, Hugging Face's own methods of `model` prune as the exported graphs do."""
        with ExitStack() as both:
            both.enter_context(self.image_encoder.standing_in(model))
            if isinstance(self.language, StandsIn):
                both.enter_context(self.language.standing_in(self.language_model(model)))
            yield

    def with_encoder(self, image_encoder: ImageEncoder) -> Family:
        """The same family with another image encoder."""
        family = copy.copy(self)
        family.image_encoder = image_encoder
        return family

    def with_language(self, language: LanguagePart) -> Family:
        """The same family with another language model."""
        family = copy.copy(self)
        family.language = language
        return family

    @property
    def name(self) -> str:
        """For people: "BLIP-2 with a decoder-only language model"."""
        article = "an" if self.language.kind[0] in "aeiou" else "a"
        return f"{self.title} with {article} {self.language.kind} language model"

    @property
    def generates_text(self) -> bool:
        return self.language.kind not in SCORE_TEXTS

    def model_class(self) -> type[Any]:
        """The Hugging Face class that `from_pretrained` is called on."""
        raise NotImplementedError

    def image_processor(self, model: str, source: Mapping[str, Any]) -> Any:
        """The image processor, as `from_pretrained(model, **source)` finds it."""
        return AutoImageProcessor.from_pretrained(model, **source, backend="pil")

    def language_model(self, model: Any) -> Any:
        """The part of the model that `language` exports."""
        return model.language_model

    def generation_config(self, model: Any) -> GenerationConfig:
        """The settings that Hugging Face's `generate()` of this model follows where it is given no arguments."""
        # BLIP-2 generates with its language model's configuration, not with its own.
        return model.language_model.generation_config if self.generates_text else GenerationConfig()

    def check(self, model: Any, name: str) -> None:
        """Raises UsageError where this checkpoint has a part that the graphs can't express."""
        self.language.check(self.language_model(model), name)

    def check_tokenizer(self, tokenizer: Any, name: str) -> None:
        """Raises UsageError where the checkpoint's tokenizer makes prompts that the model can't read."""

    def set_dtype(self, model: Any, dtype: torch.dtype) -> None:
        """Turns the weights of the parts whose graphs have the bundle's precision into `dtype`, in place."""
        self.image_encoder.set_dtype(model, dtype)
        self.language.set_dtype(self.language_model(model), dtype)

    def word_embeddings(self, model: Any) -> Any:
        """The table that a prompt's tokens are looked up in."""
        return model.get_input_embeddings()

    def logit_scale(self, model: Any) -> float | None:
        """The factor of similarities before a softmax over classes; None: the model has none."""
        return None

    def cross_layers(self, model: Any) -> int:
        """How many layers read the image and may vote."""
        raise NotImplementedError

    def graphs(
        self, model: Any, method: VotingMethod, compared: Sequence[VotingMethod] | None = None
    ) -> Iterator[Graph]:
        """The graphs of the bundle, in the order of the pipeline. Each may be dropped before the next is made.

        Args:
            method: by which query tokens are chosen, where the family votes.
            compared: with diagnostics, the methods whose scores the Q-Former graph outputs as well.
        """
        yield from self.image_encoder.graphs(model, image_weights=False)
        yield from self.language.graphs(self.language_model(model))

    def max_positions(self, model: Any) -> int | None:
        """Positions of the text, with the query tokens where these have positions; None: no end to them."""
        return self.language.max_positions(self.language_model(model))
