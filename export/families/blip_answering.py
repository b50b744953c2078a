"""BLIP for question answering: a text encoder reads question and image tokens, a decoder reads what it made of them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import BlipForQuestionAnswering, GenerationConfig

from catp.export.families.base import Family


class BlipAnswering(Family):
    """No Q-Former, so no query tokens: the question encoder takes as many image tokens as there are."""

    title = "BLIP"
    model_type = "blip"
    name = "BLIP for question answering"
    votes = False
    ends_itself = True
    placeholder = None

    def model_class(self) -> type[BlipForQuestionAnswering]:
        return BlipForQuestionAnswering

    @contextmanager
    def standing_in(self, model: Any) -> Iterator[None]:
        with super().standing_in(model), self.language.standing_in(model):  # type: ignore[attr-defined]
            yield

    def language_model(self, model: Any) -> Any:
        """The model itself: what generates is its decoder, which shares nothing with the encoder but the size."""
        return model

    def generation_config(self, model: Any) -> GenerationConfig:
        """The decoder's own, with the three tokens that `generate()` of the whole model gives it."""
        found: Any = copy.deepcopy(model.text_decoder.generation_config)
        found.eos_token_id = model.config.text_config.sep_token_id
        found.pad_token_id = model.config.text_config.pad_token_id
        found.decoder_start_token_id = model.decoder_start_token_id
        return found
