"""BLIP for captions: a text decoder reads image tokens, and continues a text about them."""

from __future__ import annotations

from typing import Any

from transformers import BlipForConditionalGeneration

from catp.export.families.blip_writing import BlipWriting
from catp.runtime.errors import UsageError


class BlipCaptioning(BlipWriting):
    """The decoder's cross-attention takes as many image tokens as there are."""

    name = "BLIP for captions"

    def model_class(self) -> type[BlipForConditionalGeneration]:
        return BlipForConditionalGeneration

    def start_token(self, model: Any) -> int:
        return model.config.text_config.bos_token_id

    def check_tokenizer(self, tokenizer: Any, name: str) -> None:
        # generate() puts bos in place of a prompt's first token and leaves out its last one, whatever these are.
        framing = tokenizer("").input_ids
        if len(framing) != 2:
            raise UsageError(
                f"model {name}: its tokenizer adds {len(framing)} tokens to a text; a caption's beginning needs one "
                "before and one after it, as BERT's tokenizer adds [CLS] and [SEP]; save its processor again"
            )
