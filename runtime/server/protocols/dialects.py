"""Dialects: how an API writes an answer, whole or as server-sent events."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from catp.runtime.server.failures import Failure
from catp.runtime.server.model.jobs import Finished
from catp.runtime.server.shapes import (
    Account,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    Generated,
    KServeError,
    OpenAiError,
    Usage,
)


class Dialect(ABC):
    """One API's words for the answer to one request."""

    event: ClassVar[Any]
    """The shape of a stream's events."""

    end: ClassVar[str | None] = None
    """The data of one more event, after a stream that did not fail."""

    @abstractmethod
    def whole(self, finished: Finished) -> Mapping[str, object]:
        """The body of a response that is no stream."""

    @abstractmethod
    def opening(self) -> Iterator[Mapping[str, object]]:
        """Events before the first piece."""

    @abstractmethod
    def piece(self, text: str) -> Mapping[str, object]:
        """The event of a piece of the text."""

    @abstractmethod
    def closing(self, finished: Finished) -> Iterator[Mapping[str, object]]:
        """Events after the last piece."""

    @abstractmethod
    def failed(self, failure: Failure) -> Mapping[str, object]:
        """The last event of a stream that failed."""


def account(finished: Finished) -> Account:
    """The extra facts about an answer, the same in every dialect."""
    answer = finished.answer
    found: Account = {
        "num_kept": answer.num_kept,
        "kept_indices": answer.kept_indices,
        "image_cached": finished.cached,
        "timings_ms": {name: round(value, 3) for name, value in answer.to_dict()["timings_ms"].items()},
    }
    if finished.explanation is not None:
        found["explanation"] = finished.explanation
    return found


class OpenAiChat(Dialect):
    """Chat completions of OpenAI's API (https://platform.openai.com/docs/api-reference/chat)."""

    event = ChatChunk
    end = "[DONE]"

    def __init__(self, request_id: str, model: str, include_usage: bool) -> None:
        self._id = f"chatcmpl-{request_id}"
        self._model = model
        self._include_usage = include_usage
        self._created = int(time.time())

    def whole(self, finished: Finished) -> ChatCompletion:
        message: ChatMessage = {"role": "assistant", "content": finished.answer.answer, "refusal": None}
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "message": message, "finish_reason": finished.reason, "logprobs": None}],
            "usage": self._usage(finished),
            "catp": account(finished),
        }

    def opening(self) -> Iterator[ChatChunk]:
        yield self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> ChatChunk:
        return self._chunk({"content": text})

    def closing(self, finished: Finished) -> Iterator[ChatChunk]:
        last = self._chunk({}, finished.reason)
        last["catp"] = account(finished)
        yield last
        if self._include_usage:
            yield {**self._chunk({}), "choices": [], "usage": self._usage(finished)}

    def failed(self, failure: Failure) -> OpenAiError | KServeError:
        return failure.body()

    def _chunk(self, delta: ChatDelta, reason: str | None = None) -> ChatChunk:
        found: ChatChunk = {
            "id": self._id,
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
            "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}],
        }
        if self._include_usage:
            found["usage"] = None
        return found

    @staticmethod
    def _usage(finished: Finished) -> Usage:
        """Image tokens are counted as they are read: pruning shows in the bill."""
        kept, generated = finished.answer.num_kept, len(finished.answer.token_ids)
        prompt = kept + finished.prompt_tokens
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"image_tokens": kept, "cached_tokens": kept if finished.cached else 0},
        }


class KServeGenerate(Dialect):
    """The generate extension of KServe's and Triton's v2 protocol."""

    event = Generated

    def __init__(self, model: str, id: str | None) -> None:
        self._model = model
        self._id = id

    def whole(self, finished: Finished) -> Generated:
        return self._details(finished.answer.answer, finished)

    def opening(self) -> Iterator[Generated]:
        return iter(())

    def piece(self, text: str) -> Generated:
        found: Generated = {"model_name": self._model, "model_version": "1", "text_output": text}
        if self._id is not None:
            found["id"] = self._id
        return found

    def closing(self, finished: Finished) -> Iterator[Generated]:
        yield self._details("", finished)

    def failed(self, failure: Failure) -> OpenAiError | KServeError:
        return failure.body("/v2/")

    def _details(self, text: str, finished: Finished) -> Generated:
        return {**self.piece(text), "finish_reason": finished.reason, "catp": account(finished)}
