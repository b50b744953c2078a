"""Prompts to token ids and back, with the bundle's tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from catp.runtime.errors import BundleError, UsageError
from catp.runtime.manifest import TextSpec


class TextCodec:
    """The tokenizer of a bundle, with its prompt template."""

    def __init__(self, tokenizer_file: Path, spec: TextSpec) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except Exception as error:  # tokenizers raises bare Exception
            raise BundleError(f"{tokenizer_file}: not a tokenizer ({error}); export the bundle again") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._spec = spec

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, special tokens included. An empty prompt asks for a caption.

        Raises:
            UsageError: it is not valid Unicode, or nothing is left to feed the language model.
        """
        try:
            prompt.encode()
        except UnicodeEncodeError:  # bytes of the command line that were no text
            raise UsageError("prompt: it is not valid Unicode; give it as UTF-8") from None
        ids = self._tokenizer.encode(self._spec.prompt_template.replace("{prompt}", prompt)).ids
        if not ids:
            raise UsageError("prompt: it is empty, and this model's tokenizer adds no begin token; give a text")
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of generated tokens, without special tokens."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True).strip()
