"""A bundle behind LitServe, as a rival of catp-serve: `python litserve_server.py BUNDLE --port 9001`.

It needs an environment of its own (`pip install litserve '.[cpu]'`) and uses LitServe's OpenAI face, which streams each
request by `Pipeline.stream`. Its batches do not stream: with one, every request ended with an error.
"""

from __future__ import annotations

import argparse
import base64
import io
from collections.abc import Iterator
from typing import Any

import litserve
from PIL import Image

from catp.runtime import Pipeline


class Answers(litserve.LitAPI):
    """Answers to questions about pictures.

    Args:
        bundle: folder.
        tokens: of an answer; exactly so many are generated.
    """

    def __init__(self, bundle: str, tokens: int, **options: Any) -> None:
        super().__init__(**options)
        self._bundle, self._tokens = bundle, tokens

    def setup(self, device: str) -> None:
        self._pipeline = Pipeline.load(self._bundle)
        self._settings = {"max_new_tokens": self._tokens, "min_new_tokens": self._tokens}

    def decode_request(self, request: Any, **_: Any) -> tuple[Image.Image, str]:
        parts = {part.type: part for part in request.messages[-1].content}
        url = parts["image_url"].image_url
        content = (url if isinstance(url, str) else url.url).partition("base64,")[2]
        return Image.open(io.BytesIO(base64.b64decode(content))), f"Question: {parts['text'].text} Answer:"

    def predict(self, asked: Any, **_: Any) -> Iterator[Any]:
        picture, prompt = asked
        for text in self._pipeline.stream(picture, prompt, **self._settings):
            yield self._message(text)
        yield self._message("")  # tokens of random weights may have no text at all

    def _message(self, text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": text, "completion_tokens": self._tokens}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    api = Answers(given.bundle, given.tokens, spec=litserve.OpenAISpec(), stream=True)
    litserve.LitServer(api, accelerator="cpu", timeout=600).run(
        host="127.0.0.1", port=given.port, generate_client_file=False
    )
