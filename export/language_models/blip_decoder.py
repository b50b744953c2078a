"""BLIP's text decoder, which continues a text by what it reads beside it: what its kinds share."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch

from catp.export.language_models.base import set_parameters
from catp.runtime.errors import UsageError


class BlipDecoder:
    """The part of a kind that its configuration, types and positions decide."""

    parts: ClassVar[tuple[str, ...]]  # of the model, that the language graphs are made of
    writes: ClassVar[str]  # for people: what it writes, "an answer"
    reader: ClassVar[str]  # for people: the part that reads the image first

    def check_config(self, config: Any, name: str) -> None:
        for token in ("bos_token_id", "sep_token_id", "pad_token_id"):
            found = getattr(config, token)
            if found is None or not 0 <= found < config.vocab_size:
                raise UsageError(
                    f"model {name}: text_config.{token} in config.json is {found}, of a vocabulary of "
                    f"{config.vocab_size} tokens; {self.writes} begins with the first of bos, sep and pad, and ends "
                    "with the second"
                )
        if not config.is_decoder:
            raise UsageError(
                f"model {name}: text_config.is_decoder in config.json is false, so its {self.reader} reads no image"
            )

    def check(self, lm: Any, name: str) -> None:
        pass

    def set_dtype(self, lm: Any, dtype: torch.dtype) -> None:
        for part in self.parts:
            set_parameters(getattr(lm, part), dtype)

    def standing_in(self, lm: Any) -> AbstractContextManager[None]:
        """While it lasts, Hugging Face's own text models prune as the exported ones do: nothing."""
        return nullcontext()

    def max_positions(self, lm: Any) -> int | None:
        return lm.config.text_config.max_position_embeddings
