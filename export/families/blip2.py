"""BLIP-2."""

from __future__ import annotations

from transformers import Blip2ForConditionalGeneration

from catp.export.families.query_tokens import QueryTokens


class Blip2(QueryTokens):
    """The Q-Former sees the image alone."""

    title = "BLIP-2"
    model_type = "blip-2"

    def model_class(self) -> type[Blip2ForConditionalGeneration]:
        return Blip2ForConditionalGeneration
