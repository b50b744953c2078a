"""BLIP's text encoder, which reads question and image, and the decoder that writes the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from catp.export.graphs import Graph, answer_decoder, question_encoder
from catp.export.language_models.blip_decoder import BlipDecoder
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError


class QuestionAnswering(BlipDecoder):
    """question_encoder, which also computes what cross-attention reads, and answer_decoder."""

    kind: LanguageKind = "question-answering"
    accepts = "BLIP's own text encoder and decoder"
    parts = ("text_encoder", "text_decoder")
    writes, reader = "an answer", "text encoder"

    def check_config(self, config: Any, name: str) -> None:
        super().check_config(config, name)
        if config.encoder_hidden_size != config.hidden_size:
            raise UsageError(
                f"model {name}: config.json has image tokens of {config.encoder_hidden_size} numbers and text tokens "
                f"of {config.hidden_size}; Hugging Face's BLIP can only answer where they are equally many"
            )

    def graphs(self, lm: Any) -> Iterator[Graph]:
        yield question_encoder.graph(lm)
        yield answer_decoder.graph(lm.text_decoder)
