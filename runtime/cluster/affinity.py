"""Affinity: a name for the pictures of a request, the same for every question about them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any


def picture_name(body: bytes, header_length: str | None = None) -> str:
    """The SHA-256 of a request's pictures as they were sent, in hexadecimal; of the whole body where none is found.

    It only decides who answers: what is wrong with a body is found, and said, by the replica that reads it.

    Args:
        body: of any route on which questions are asked.
        header_length: the header inference-header-content-length: the bytes of JSON, which those of tensors follow.
    """
    length = len(body)
    if header_length is not None and header_length.isascii() and header_length.isdigit() and len(header_length) < 10:
        length = int(header_length)
    try:
        asked = json.loads(body[:length])
        pictures = list(_pictures(asked, memoryview(body)[length:]))
    except (ValueError, RecursionError):
        pictures = []
    digest = hashlib.sha256()
    for picture in pictures or [body]:
        digest.update(hashlib.sha256(picture).digest())
    return digest.hexdigest()


def _pictures(asked: Any, tensors: memoryview) -> Iterator[bytes | memoryview]:
    """Pictures of a chat, of KServe's generate, and of its infer."""
    if not isinstance(asked, dict):
        return
    for message in _list(asked.get("messages")):
        for part in _list(message.get("content")) if isinstance(message, dict) else []:
            url = part.get("image_url") if isinstance(part, dict) else None
            yield from _encoded(url.get("url") if isinstance(url, dict) else None)
    image = asked.get("image")
    for element in image if isinstance(image, list) else [image]:
        yield from _encoded(element)
    for tensor in _list(asked.get("inputs")):
        if not isinstance(tensor, dict):
            continue
        parameters = tensor.get("parameters")
        size = parameters.get("binary_data_size") if isinstance(parameters, dict) else None
        found: list[bytes | memoryview] = []
        if isinstance(size, int) and size >= 0:
            found, tensors = [tensors[:size]], tensors[size:]
        else:
            for part in _list(tensor.get("data")):
                for element in part if isinstance(part, list) else [part]:
                    found += _encoded(element)
        if tensor.get("name") == "image":
            yield from found


def _list(given: Any) -> list[Any]:
    return given if isinstance(given, list) else []


def _encoded(given: Any) -> list[bytes]:
    """The base64 of a data URL, which may name another type for the same bytes; any other text as it is."""
    if not isinstance(given, str):
        return []
    head, mark, rest = given.partition(";base64,")
    data = mark and head[:5].lower() == "data:"
    return [(rest if data else given).encode("utf-8", "surrogatepass")]
