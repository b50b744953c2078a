"""Operations: a row for each path and method, which routes, keys and the published document are all made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.routing import Route

from catp.runtime.server.protocols.dialects import Dialect


@dataclass(frozen=True)
class Operation:
    """One path, with the method that it takes.

    Args:
        path: as Starlette writes it, with {name} for a model's.
        endpoint: a function of a request, or an ASGI application.
        summary: one line for people.
        answer: the shape of a whole answer, or the media type of one that is no JSON; None: there is none.
        body: the shape of a body: the method is POST then, and GET otherwise.
        stream: the dialect of answers that are streams; those that are not have the shape of `answer`, if it has one.
        binary: tensors may follow a body's JSON, as KServe's extension has it.
        needs_key: where there are keys.
        while_draining: it is served until the end.
        logged: its requests have lines in the log.
        traced: they are traced, where any are; those that somebody sends every few seconds are not.
        statuses: of HTTP with which `answer` comes.
    """

    path: str
    endpoint: Callable[..., Any]
    summary: str
    answer: Any
    body: type[BaseModel] | None = None
    stream: type[Dialect] | None = None
    binary: bool = False
    needs_key: bool = True
    while_draining: bool = False
    logged: bool = True
    traced: bool = True
    statuses: Sequence[int] = (200,)

    @property
    def method(self) -> str:
        return "GET" if self.body is None else "POST"

    @property
    def plain_path(self) -> str:
        """Without what Starlette alone understands."""
        return self.path.replace(":path}", "}")

    def route(self) -> Route:
        return Route(self.path, self.endpoint, methods=[self.method])
