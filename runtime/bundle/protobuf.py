"""The wire format of protocol buffers, read without the library that made it.

https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_VARINT: Final = 0
_FIXED64: Final = 1
_BYTES: Final = 2
_FIXED32: Final = 5


class MalformedError(ValueError):
    """Bytes that are no message."""


class UnknownFieldError(ValueError):
    """A field that the reader does not know; `number` is its."""

    def __init__(self, number: int) -> None:
        super().__init__(f"field {number}")
        self.number = number


def read(message: bytes, known: Mapping[int, bool]) -> list[tuple[int, bytes]]:
    """Number and content of a message's fields, in their order; those that are messages themselves stay bytes.

    Neither recursion nor memory depends on the content.

    Args:
        known: the numbers that fields may have, and whether they are wanted. What has no length is never given: where
            a text or a message is expected, protocol buffers take it for a field of the future, too.

    Raises:
        MalformedError: it ends in the middle of a field, or has a group, which were given up before ONNX began.
        UnknownFieldError: it has a field of another number.
    """
    found = []
    place, end = 0, len(message)
    while place < end:
        key = message[place]
        place += 1
        if key > 0x7F:
            key, place = _varint(message, place - 1)
        number, kind = key >> 3, key & 7
        wanted = known.get(number)
        if wanted is None:
            raise UnknownFieldError(number)
        if kind == _BYTES:
            if place < end and message[place] < 0x80:
                size = message[place]
                place += 1
            else:
                size, place = _varint(message, place)
            if wanted:
                found.append((number, message[place : place + size]))
            place += size
        elif kind == _VARINT:
            if place < end and message[place] < 0x80:
                place += 1
            else:
                _, place = _varint(message, place)
        elif kind == _FIXED32:
            place += 4
        elif kind == _FIXED64:
            place += 8
        else:
            raise MalformedError(f"wire type {kind}")
    if place > end:
        raise MalformedError("it ends in the middle of a field")
    return found


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of at most ten bytes, and the place after it."""
    number = 0
    for shift in range(0, 70, 7):
        if place >= len(message):
            break
        byte = message[place]
        place += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, place
    raise MalformedError("a number without an end")
