"""Prompts to token ids and back, with the bundle's tokenizer.json."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from catp.runtime.bundle.manifest import TextSpec
from catp.runtime.errors import BundleError, UsageError

_ANCHOR = "abcdef"
"""Text before a token, so that what a tokenizer does at the beginning of a text is not taken for the token's."""


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
        self._pieces: dict[int, bytes] = {}

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, special tokens included. An empty prompt asks for a caption.

        Raises:
            UsageError: it is not valid Unicode, or nothing is left to feed the language model.
        """
        check_unicode("prompt", prompt)
        ids = self._tokenizer.encode(self._spec.prompt_template.replace("{prompt}", prompt)).ids
        if not ids:
            raise UsageError("prompt: it is empty, and this model's tokenizer adds no begin token; give a text")
        return ids

    def decode(self, token_ids: Sequence[int], stop_strings: Sequence[str] = ()) -> str:
        """The text of generated tokens, without special tokens, and up to the first of the stop strings."""
        return self.raw(token_ids, stop_strings).strip()

    def raw(self, token_ids: Sequence[int], stop_strings: Sequence[str] = ()) -> str:
        """As `decode`, with the spaces around it."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text[: min((text.find(string) for string in stop_strings if string in text), default=None)]

    def piece(self, token: int) -> bytes:
        """What a token adds to a text that already has some; a part of a character where the token is one."""
        if token not in self._pieces:
            self._pieces[token] = self._piece(token)
        return self._pieces[token]

    def _piece(self, token: int) -> bytes:
        name = self._tokenizer.id_to_token(token) or ""
        if "ByteLevel" in self._decoders and all(character in _byte_of() for character in name):
            return bytes(_byte_of()[character] for character in name)
        if "ByteFallback" in self._decoders and len(name) == 6 and name.startswith("<0x"):
            return bytes([int(name[3:5], 16)])
        before = self._tokenizer.encode(_ANCHOR, add_special_tokens=False).ids
        text = self._tokenizer.decode([*before, token], skip_special_tokens=False)
        return text[text.index(_ANCHOR) + len(_ANCHOR) :].encode()

    @functools.cached_property
    def _decoders(self) -> set[str]:
        """Kinds of the decoder's parts."""
        decoder = json.loads(self._tokenizer.to_str())["decoder"] or {}
        return {part["type"] for part in (decoder, *decoder.get("decoders", ()))} if decoder else set()


def check_unicode(what: str, text: str) -> None:
    """Raises UsageError where bytes of the command line were no text."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what}: it is not valid Unicode; give it as UTF-8") from None


@functools.cache
def _byte_of() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable Latin-1 for itself, the others for
    the characters from U+0100 on, in order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}
