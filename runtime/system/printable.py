"""Text for a terminal: what would steer it, or could not be encoded, is spelled out."""

from __future__ import annotations

import re

_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters but tab and line feed, ends of lines, turns of the writing direction, bytes that were no text."""


def printable(text: str) -> str:
    """The text with \\x1b in place of an escape character, and so on."""
    return _UNSAFE.sub(_spelled, text)


def one_line(text: str) -> str:
    """As `printable`, line feeds and tabs too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def in_json(text: str) -> str:
    """JSON that says the same, printable: such characters are in its strings, if anywhere."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _spelled(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file's name
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
