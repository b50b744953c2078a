"""Prompts to token ids and back, with the bundle's tokenizer.json."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path

from catp.runtime.bundle.manifest import TextSpec
from catp.runtime.errors import UsageError
from catp.runtime.inputs.tokenizer_file import load_tokenizer
from catp.runtime.limits import PROMPT_CHARACTERS

_ANCHOR = "abcdef"
"""Text before a token, so that what a tokenizer does at the beginning of a text is not taken for the token's."""


class TextCodec:
    """The tokenizer of a bundle, with its prompt template.

    A prompt is text: what looks like a special token in it (`<image>`, `</s>`, `[SEP]`) is read letter by letter, or
    refused where the tokenizer can't. The template's own special tokens are tokens.

    Args:
        placeholder: the id that stands for an image, whose token is no word of a prompt even where the tokenizer does
            not call it special.
    """

    def __init__(self, tokenizer_file: Path, spec: TextSpec, placeholder: int | None = None) -> None:
        self._tokenizer = load_tokenizer(tokenizer_file)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._spec = spec
        self._pieces: dict[int, bytes] = {}
        added = self._tokenizer.get_added_tokens_decoder().items()
        self._marks = {id: token.content for id, token in added if token.special or id == placeholder}
        self._written = re.compile(
            "|".join(map(re.escape, sorted(self._marks.values(), key=len, reverse=True))) or "(?!)"
        )
        parts = spec.prompt_template.split("{prompt}")
        self._of_template = [mark for part in parts for mark, _ in self._read(part)[1]]
        # Where the template has none, they need not be looked for: then a prompt that has some can be read, too.
        self._tokenizer.encode_special_tokens = not self._of_template

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt, those that the tokenizer adds included. An empty prompt asks for a caption.

        Raises:
            UsageError: it is not valid Unicode, has a special token that can't be read as text, or nothing is left to
                feed the language model.
        """
        check_unicode("prompt", prompt)
        ids, marks = self._read(self._spec.prompt_template.replace("{prompt}", prompt))
        if [mark for mark, _ in marks] != self._of_template:
            written = self._written.search(prompt)
            raise UsageError(
                f"prompt: {written[0] if written else marks[0][1]!r} is a special token of this model's tokenizer, "
                "which can't read it as text; leave it out (images need no mark in a prompt)"
            )
        if not ids:
            raise UsageError("prompt: it is empty, and this model's tokenizer adds no begin token; give a text")
        return ids

    def encode_answer(self, answer: str) -> list[int]:
        """Token ids of an answer, without any that the tokenizer would add.

        Raises:
            UsageError: it is not valid Unicode, has a special token that can't be read as text, or has no words.
        """
        check_unicode("answer", answer)
        ids, marks = self._read(answer, bare=True)
        if marks:
            written = self._written.search(answer)
            mark = written[0] if written else marks[0][1]
            raise UsageError(f"answer {answer!r}: {mark!r} is a special token of this model's tokenizer")
        if not ids:
            raise UsageError(f"answer {answer!r}: it has no words")
        return ids

    def _read(self, text: str, bare: bool = False) -> tuple[list[int], list[tuple[int, str]]]:
        """Token ids of a text, and those of them that are no text though something in it became them, each with that:
        special tokens, and the unknown one in what looks like a special token.

        Args:
            bare: without the tokens that the tokenizer adds.
        """
        encoding = self._tokenizer.encode(text, add_special_tokens=not bare)
        written = [match.span() for match in self._written.finditer(text)]
        marks = []
        for token, added, (start, end) in zip(encoding.ids, encoding.special_tokens_mask, encoding.offsets):
            looks = any(first < end and start < last for first, last in written)
            special = token in self._marks and token != self._unknown
            if not added and (special or (looks and token == self._unknown)):
                marks.append((token, text[start:end]))
        return encoding.ids, marks

    @functools.cached_property
    def _unknown(self) -> int | None:
        """The token for text that the vocabulary lacks."""
        model = json.loads(self._tokenizer.to_str())["model"]
        unknown = model.get("unk_token")
        return model.get("unk_id") if unknown is None else self._tokenizer.token_to_id(unknown)

    def decode(self, token_ids: Sequence[int], stop_strings: Sequence[str] = ()) -> str:
        """The text of generated tokens, without special tokens, and up to the first of the stop strings."""
        return self.raw(token_ids, stop_strings).strip()

    def raw(self, token_ids: Sequence[int], stop_strings: Sequence[str] = ()) -> str:
        """As `decode`, with the spaces around it."""
        text = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text[: min((text.find(string) for string in stop_strings if string in text), default=None)]

    def piece(self, token: int) -> bytes:
        """The bytes that a token adds to a text that already has some; a part of a character where the token is one."""
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
    """Raises UsageError where bytes of the command line were no text, or are too many."""
    if len(text) > PROMPT_CHARACTERS:
        raise UsageError(f"{what}: {len(text):,} characters, at most {PROMPT_CHARACTERS:,}; give a shorter one")
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
