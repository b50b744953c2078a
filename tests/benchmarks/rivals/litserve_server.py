"""A bundle behind LitServe, as a rival of catp-serve: `python litserve_server.py BUNDLE --port 9001 --batch 8`.

It needs an environment of its own (`pip install litserve '.[cpu]'`) and uses LitServe's OpenAI face. With `--batch 1`
each request is streamed by `Pipeline.stream`; with more, requests that arrive together are answered by one call of
`Pipeline.generate`, a static batch.
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
        if not isinstance(asked, list):
            picture, prompt = asked
            for text in self._pipeline.stream(picture, prompt, **self._settings):
                yield self._message(text)
            yield self._message("")  # tokens of random weights may have no text at all
            return
        pictures, prompts = zip(*asked)
        answers = self._pipeline.generate(list(pictures), list(prompts), **self._settings)
        yield [self._message(answer.answer) for answer in answers]

    def _message(self, text: str) -> dict[str, Any]:
        return {"role": "assistant", "content": text, "completion_tokens": self._tokens}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=9001)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=32)
    given = parser.parse_args()
    batching = {"max_batch_size": given.batch, "batch_timeout": 0.02} if given.batch > 1 else {}
    api = Answers(given.bundle, given.tokens, spec=litserve.OpenAISpec(), stream=True, **batching)
    litserve.LitServer(api, accelerator="cpu", timeout=600).run(
        host="127.0.0.1", port=given.port, generate_client_file=False
    )
