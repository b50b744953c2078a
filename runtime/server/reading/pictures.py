"""Pictures that clients send: data URLs to bytes, bytes to pixels, within bounds."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection

from PIL import Image

from catp.runtime.inputs.images import load_image
from catp.runtime.limits import IMAGE_BYTES, IMAGE_FORMATS, IMAGE_PIXELS
from catp.runtime.server.failures import Failure
from catp.runtime.server.reading.fetching import fetch

_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?(;[\w-]+=[^;,]*)*;base64,", re.ASCII | re.IGNORECASE)

_ACCEPTED = "accepted: data:image/png;base64,... (JPEG, PNG or WebP)"


def read_url(url: str, param: str, domains: Collection[str] = ()) -> bytes:
    """The encoded picture in a data URL, or on one of the hosts that pictures are fetched from.

    Raises:
        Failure: it is another URL, or not base64, or larger than IMAGE_BYTES, or can't be fetched.
    """
    found = _DATA.match(url)
    if found is None and domains and not url[:5].lower().startswith("data:"):
        return fetch(url, domains, param)
    if found is None:
        scheme = url.partition(":")[0][:20]
        raise Failure(
            400, f"image URL of scheme {scheme!r}: nothing is fetched here; {_ACCEPTED}", "invalid_url", param
        )
    return decode_base64(url[found.end() :], param)


def decode_base64(text: str, param: str) -> bytes:
    """The encoded picture in base64.

    Raises:
        Failure: it is no base64, empty, or larger than IMAGE_BYTES.
    """
    if len(text) // 4 * 3 - 2 > IMAGE_BYTES:
        raise Failure(413, f"image: more than {IMAGE_BYTES:,} bytes; give a smaller one", "image_too_large", param)
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Failure(400, f"image: no base64; {_ACCEPTED}", "invalid_base64", param) from None
    if not content:
        raise Failure(400, f"image: it is empty; {_ACCEPTED}", "invalid_image", param)
    return content


def open_picture(content: bytes) -> Image.Image:
    """An upright RGB picture; formats and sizes are looked at before a pixel is decoded.

    Raises:
        ImageError: it is of another format, too large, too stretched, an animation, or broken.
    """
    return load_image(content, IMAGE_FORMATS, IMAGE_PIXELS)
