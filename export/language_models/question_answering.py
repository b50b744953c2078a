"""BLIP's text encoder, which reads question and image, and the decoder that writes the answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from catp.export.graphs import Graph, answer_decoder, question_encoder
from catp.export.language_models.base import set_parameters
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError


class QuestionAnswering:
    """question_encoder, which also computes what cross-attention reads, and answer_decoder."""

    kind: LanguageKind = "question-answering"
    accepts = "BLIP's own text encoder and decoder"

    def check_config(self, config: Any, name: str) -> None:
        for token in ("bos_token_id", "sep_token_id", "pad_token_id"):
            found = getattr(config, token)
            if found is None or not 0 <= found < config.vocab_size:
                raise UsageError(
                    f"model {name}: text_config.{token} in config.json is {found}, of a vocabulary of "
                    f"{config.vocab_size} tokens; an answer begins with the first of bos, sep and pad, and ends with "
                    "the second"
                )
        if not config.is_decoder:
            raise UsageError(
                f"model {name}: text_config.is_decoder in config.json is false, so its text encoder reads no image"
            )

        if config.encoder_hidden_size != config.hidden_size:
            raise UsageError(
                f"model {name}: config.json has image tokens of {config.encoder_hidden_size} numbers and text tokens "
                f"of {config.hidden_size}; Hugging Face's BLIP can only answer where they are equally many"
            )

    def check(self, lm: Any, name: str) -> None:
        pass

    def set_dtype(self, lm: Any, dtype: torch.dtype) -> None:
        for part in (lm.text_encoder, lm.text_decoder):
            set_parameters(part, dtype)

    def graphs(self, lm: Any) -> Iterator[Graph]:
        yield question_encoder.graph(lm)
        yield answer_decoder.graph(lm.text_decoder)

    def standing_in(self, lm: Any) -> AbstractContextManager[None]:
        """While it lasts, Hugging Face's own text encoder prunes as the exported one does: nothing."""
        return nullcontext()

    def max_positions(self, lm: Any) -> int | None:
        return lm.config.text_config.max_position_embeddings
