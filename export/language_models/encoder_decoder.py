"""An encoder-decoder language model: T5, with the relative position bias of which Flan-T5 is made too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from catp.export.graphs import Graph, text_decoder, text_encoder
from catp.export.language_models.base import set_parameters
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError


class EncoderDecoder:
    """text_encoder, which also computes what cross-attention reads, and text_decoder."""

    kind: LanguageKind = "encoder-decoder"
    accepts = "T5 (Flan-T5)"

    def check_config(self, config: Any, name: str) -> None:
        if config.model_type != "t5":
            raise UsageError(
                f"model {name}: its encoder-decoder language model is {config.model_type!r}; accepted: 't5' "
                "(Flan-T5), whose relative positions let kept tokens keep their distances"
            )

    def check(self, lm: Any, name: str) -> None:
        if lm.generation_config.decoder_start_token_id is None:
            raise UsageError(
                f"model {name}: its generation_config.json has no decoder_start_token_id; T5's is its pad token's id"
            )

    def set_dtype(self, lm: Any, dtype: torch.dtype) -> None:
        set_parameters(lm, dtype)
        if dtype == torch.float16:
            # As transformers loads it: what comes out of T5's feed-forward layers overflows half precision.
            for name, parameter in lm.named_parameters():
                if ".wo." in name:
                    parameter.data = parameter.data.float()

    def graphs(self, lm: Any) -> Iterator[Graph]:
        yield text_encoder.graph(lm)
        yield text_decoder.graph(lm)

    def max_positions(self, lm: Any) -> int | None:
        return None
