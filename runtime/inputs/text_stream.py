"""An answer's text while it grows: pieces that stay as they are, whatever comes next."""

from __future__ import annotations

from collections.abc import Sequence

from catp.runtime.inputs.text import TextCodec

_INCOMPLETE = "\ufffd"
"""What bytes that are no whole character are decoded to."""


class TextStream:
    """Pieces of one answer; together they are its text.

    Held back is what later tokens may change: bytes of a character that is not whole, what may become a stop string,
    and spaces, which an answer does not end with.
    """

    def __init__(self, codec: TextCodec, stop_strings: Sequence[str] = ()) -> None:
        self._codec = codec
        self._stop_strings = stop_strings
        self._told = 0  # characters

    def advance(self, token_ids: Sequence[int]) -> str:
        """The part that is new and certain, given all tokens so far; often nothing."""
        text = self._codec.raw(token_ids, self._stop_strings).lstrip()
        if text.endswith(_INCOMPLETE):
            return ""
        begun = max((_overlap(text, string) for string in self._stop_strings), default=0)
        return self._tell(text[: len(text) - begun].rstrip())

    def finish(self, token_ids: Sequence[int]) -> str:
        """The part that was held back, given all tokens there are."""
        return self._tell(self._codec.decode(token_ids, self._stop_strings))

    def _tell(self, text: str) -> str:
        piece = text[self._told :]
        self._told = max(self._told, len(text))
        return piece


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of the text begin the string."""
    return next((n for n in range(min(len(string), len(text)), 0, -1) if text.endswith(string[:n])), 0)
