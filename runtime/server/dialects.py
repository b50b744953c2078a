"""Dialects: how an API writes an answer, whole or as server-sent events."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from catp.runtime.server.failures import Failure
from catp.runtime.server.jobs import Finished


class Dialect(ABC):
    """One API's words for the answer to one request."""

    end: bytes | None = None
    """The last event of a stream that did not fail."""

    @abstractmethod
    def whole(self, finished: Finished) -> dict[str, Any]:
        """The body of a response that is no stream."""

    @abstractmethod
    def opening(self) -> Iterator[dict[str, Any]]:
        """Events before the first piece."""

    @abstractmethod
    def piece(self, text: str) -> dict[str, Any]:
        """The event of a piece of the text."""

    @abstractmethod
    def closing(self, finished: Finished) -> Iterator[dict[str, Any]]:
        """Events after the last piece."""

    @abstractmethod
    def failed(self, failure: Failure) -> dict[str, Any]:
        """The last event of a stream that failed."""


def account(finished: Finished) -> dict[str, Any]:
    """The extra facts about an answer, the same in every dialect."""
    answer = finished.answer
    told = {} if finished.explanation is None else {"explanation": finished.explanation}
    return {
        "num_kept": answer.num_kept,
        "kept_indices": answer.kept_indices,
        "image_cached": finished.cached,
        "timings_ms": {name: round(value, 3) for name, value in answer.to_dict()["timings_ms"].items()},
        **told,
    }


class OpenAiChat(Dialect):
    """Chat completions of OpenAI's API (https://platform.openai.com/docs/api-reference/chat)."""

    end = b"data: [DONE]\n\n"

    def __init__(self, request_id: str, model: str, include_usage: bool) -> None:
        self._id = f"chatcmpl-{request_id}"
        self._model = model
        self._include_usage = include_usage
        self._created = int(time.time())

    def whole(self, finished: Finished) -> dict[str, Any]:
        message = {"role": "assistant", "content": finished.answer.answer, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": finished.reason, "logprobs": None}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": self._usage(finished),
            "catp": account(finished),
        }

    def opening(self) -> Iterator[dict[str, Any]]:
        yield self._chunk({"role": "assistant", "content": ""})

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk({"content": text})

    def closing(self, finished: Finished) -> Iterator[dict[str, Any]]:
        yield {**self._chunk({}, finished.reason), "catp": account(finished)}
        if self._include_usage:
            yield {**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage(finished)}

    def failed(self, failure: Failure) -> dict[str, Any]:
        return failure.body()

    def _chunk(self, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        usage = {"usage": None} if self._include_usage else {}
        return {**self._head("chat.completion.chunk"), "choices": [choice], **usage}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model}

    @staticmethod
    def _usage(finished: Finished) -> dict[str, Any]:
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

    def __init__(self, model: str, id: str | None) -> None:
        self._head = {"model_name": model, "model_version": "1", **({} if id is None else {"id": id})}

    def whole(self, finished: Finished) -> dict[str, Any]:
        return {**self._head, "text_output": finished.answer.answer, **self._details(finished)}

    def opening(self) -> Iterator[dict[str, Any]]:
        return iter(())

    def piece(self, text: str) -> dict[str, Any]:
        return {**self._head, "text_output": text}

    def closing(self, finished: Finished) -> Iterator[dict[str, Any]]:
        yield {**self._head, "text_output": "", **self._details(finished)}

    def failed(self, failure: Failure) -> dict[str, Any]:
        return failure.body("/v2/")

    @staticmethod
    def _details(finished: Finished) -> dict[str, Any]:
        return {"finish_reason": finished.reason, "catp": account(finished)}
