"""The requests of a load: bodies of OpenAI's chat completions about pictures that a seed drew."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from PIL import Image

Pictures = Literal["cached", "new"]
"""Pictures that were asked about before, or that no request before had."""

POOL = 8
"""Different pictures among those that were asked about before."""

_BLOCK = 16
"""Pixels of one colour in a row: pictures of noise would be as large as no photograph is."""


@dataclass(frozen=True)
class Workload:
    """The wording of every request.

    Args:
        fields: of the body, beside or in place of what is made here.
        image_size: pixels, of a side.
    """

    prompt: str
    max_tokens: int
    image_size: int
    seed: int
    fields: Mapping[str, Any] = field(default_factory=dict)

    def body(self, model: str, number: int) -> bytes:
        """The JSON of a streamed request about picture `number`: one number is one picture, byte for byte."""
        url = "data:image/png;base64," + base64.b64encode(self.picture(number)).decode()
        content = [{"type": "text", "text": self.prompt}, {"type": "image_url", "image_url": {"url": url}}]
        return json.dumps(
            {
                "model": model,
                "messages": [{"role": "user", "content": content}],
                "max_tokens": self.max_tokens,
                "stream": True,
                "stream_options": {"include_usage": True},
                **self.fields,
            }
        ).encode()

    def picture(self, number: int) -> bytes:
        """A PNG file, RGB."""
        rng = np.random.default_rng((self.seed, number))
        blocks = -(-self.image_size // _BLOCK)
        colours = rng.integers(0, 256, (blocks, blocks, 3), np.uint8).repeat(_BLOCK, 0).repeat(_BLOCK, 1)
        file = io.BytesIO()
        Image.fromarray(colours[: self.image_size, : self.image_size]).save(file, "PNG")
        return file.getvalue()


def numbers(kind: Pictures) -> Iterator[int]:
    """Numbers of pictures, in the order in which requests take them: without end."""
    number = 0
    while True:
        yield number % POOL if kind == "cached" else POOL + number
        number += 1
