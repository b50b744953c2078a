"""BLIP for question answering: a text encoder reads question and image tokens, a decoder reads what it made of them."""

from __future__ import annotations

from typing import Any

from transformers import BlipForQuestionAnswering

from catp.export.families.blip_writing import BlipWriting


class BlipAnswering(BlipWriting):
    """The question encoder takes as many image tokens as there are."""

    name = "BLIP for question answering"

    def model_class(self) -> type[BlipForQuestionAnswering]:
        return BlipForQuestionAnswering

    def start_token(self, model: Any) -> int:
        return model.decoder_start_token_id
