"""Failures as clients see them: a status, and the error object that OpenAI's clients know."""

from __future__ import annotations

from dataclasses import dataclass

from catp.runtime.errors import CatpError, ImageError, UsageError
from catp.runtime.server.shapes import KServeError, OpenAiError


def speaks_kserve(path: str) -> bool:
    """Whether clients of a path know KServe's errors, and otherwise OpenAI's."""
    return path.startswith("/v2/")


@dataclass(eq=False)
class Failure(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        param: the field of the body that is to blame, if one is.
        retry_after: seconds, where it may work later.
        allow: methods that would do.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry_after: int | None = None
    allow: str | None = None

    @property
    def type(self) -> str:
        """The word that OpenAI's API has for it."""
        named = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
        return named.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")

    def body(self, path: str = "") -> OpenAiError | KServeError:
        """For a client of the API that has the path: OpenAI's error object, or under /v2 KServe's, which is a text."""
        if speaks_kserve(path):
            return {"error": self.message}
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def headers(self) -> dict[str, str]:
        headers = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        if self.allow is not None:
            headers["allow"] = self.allow  # which RFC 9110 asks for
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers

    def __str__(self) -> str:
        return self.message


def failure_of(error: Exception, request_id: str) -> Failure:
    """The failure to tell a client: a user's mistake in its own words, everything else by the request's id alone."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, ImageError):
        return Failure(400, _without_decoder(str(error)), "invalid_image", "image")
    if isinstance(error, UsageError):
        return Failure(400, str(error), "invalid_value", _param_of(str(error)))
    kind = "failed_run" if isinstance(error, CatpError) else "internal_error"
    return Failure(500, f"internal error; the server's log has more about request {request_id}", kind)


def _without_decoder(message: str) -> str:
    """The message without a decoder's own words, in which there may be anything."""
    for mark in (": broken or truncated", ": not an image"):
        if mark in message:
            return message[: message.index(mark)] + mark + "; accepted: JPEG, PNG, WebP"
    if ": refused, " in message and "pixels" not in message and "stretched" not in message:
        return message[: message.index(": refused, ")] + ": refused"
    return message


_PARAMS = {"prompt": "messages", "keep": "keep_mass", "stop_strings": "stop", "max_new_tokens": "max_tokens"}


def _param_of(message: str) -> str | None:
    """The field that a message begins with."""
    word = message.split(maxsplit=1)[0].rstrip(":") if message else ""
    if word in _PARAMS:
        return _PARAMS[word]
    known = {"ratio", "positions", "temperature", "top_k", "top_p", "seed", "repetition_penalty", "num_beams"}
    known |= {"no_repeat_ngram_size", "min_new_tokens", "length_penalty", "early_stopping", "do_sample"}
    return word if word in known else None
