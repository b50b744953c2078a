"""One client of a server: a streamed request, and the times at which the parts of its answer came."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import httpx

PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Sample:
    """One request, in seconds of a clock that all samples share.

    `pieces` are the times at which text came; a piece may be several tokens, or a token none. A model of random weights
    may give tokens that have no text at all.
    """

    began: float
    ended: float
    pieces: tuple[float, ...] = ()
    tokens: int = 0
    failure: str | None = None  # the status and code that came instead, such as "429 queue_full"

    @property
    def first_ms(self) -> float | None:
        """Milliseconds to the first text; None where there is none."""
        return 1000 * (self.pieces[0] - self.began) if self.pieces else None

    @property
    def total_ms(self) -> float:
        return 1000 * (self.ended - self.began)

    @property
    def gaps_ms(self) -> list[float]:
        """Milliseconds between one piece and the next."""
        return [1000 * (later - earlier) for earlier, later in pairwise(self.pieces)]


async def ask(client: httpx.AsyncClient, body: bytes) -> Sample:
    """Send a request and read its stream to the end.

    A failure is a sample too: the server refused, the stream ended with an error or without one, or the connection
    broke.
    """
    began = time.perf_counter()
    pieces: list[float] = []
    usage: int | None = None
    try:
        async with client.stream("POST", PATH, content=body, headers={"content-type": "application/json"}) as response:
            if response.status_code != 200:
                return _failed(began, f"{response.status_code} {_code(await response.aread())}".strip())
            done = False
            async for line in response.aiter_lines():
                if not line.startswith("data:"):
                    continue
                arrived, data = time.perf_counter(), line[5:].strip()
                if data == "[DONE]":
                    done = True
                    continue
                event = json.loads(data)
                if "error" in event:
                    return _failed(began, f"stream {_code(data.encode())}")
                if any(choice.get("delta", {}).get("content") for choice in event.get("choices") or ()):
                    pieces.append(arrived)
                if event.get("usage"):
                    usage = event["usage"]["completion_tokens"]
            if not done:
                return _failed(began, "stream ended early")
    except httpx.TimeoutException:
        return _failed(began, "time-out")
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        return _failed(began, type(error).__name__)
    if not pieces and not usage:
        return _failed(began, "no text")
    return Sample(began, time.perf_counter(), tuple(pieces), len(pieces) if usage is None else usage)


def _failed(began: float, failure: str) -> Sample:
    return Sample(began, time.perf_counter(), failure=failure)


def _code(body: bytes) -> str:
    """The code of OpenAI's error object, where there is one."""
    try:
        error: Any = json.loads(body)["error"]
        return str(error.get("code") or error.get("type") or "")[:40]
    except (ValueError, KeyError, TypeError, AttributeError):
        return ""
