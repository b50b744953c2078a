"""Routes on which questions are asked: from a request to its jobs, and from their events to a response."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from catp.runtime.errors import CatpError
from catp.runtime.server.failures import Failure, failure_of
from catp.runtime.server.http.exchange import Exchange, Inbox, compact, read_body
from catp.runtime.server.http.front import note
from catp.runtime.server.http.state import State
from catp.runtime.server.model.engine import ModelEngine
from catp.runtime.server.model.jobs import End, Event, Finished, Job, Piece
from catp.runtime.server.protocols.dialects import Dialect

Maker = Callable[[Callable[[Event], None]], Job]
"""Of what hands events to a client: a job. It takes long."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """A request, read.

    Args:
        makers: of its jobs.
        whole: the body of a response that is no stream, of how each job ended.
        dialect: of a stream, which has one job; None: there is none.
    """

    engine: ModelEngine
    makers: Sequence[Maker]
    whole: Callable[[Sequence[End]], Mapping[str, object]]
    dialect: Dialect | None = None


Reader = Callable[[State, Request, bytes], Reading]
"""Of a request and its body; raises Failure or CatpError. It takes long."""


class Asking:
    """A route on which questions are asked; an ASGI application, so that a request's whole life is in one block."""

    def __init__(self, state: State, route: str, read: Reader) -> None:
        self._state = state
        self._route = route
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, state = Request(scope, receive), self._state
        note(scope, route=self._route)
        state.gate.check(state.retry_after)
        with contextlib.ExitStack() as inside:
            exchange = Exchange(request)
            with state.gate.hold() as chunks:
                body = await read_body(request, state.gate, chunks, state.settings)
                # Only now: those that send slowly, on purpose or not, take nobody's place.
                inside.enter_context(state.gate.enter(state.retry_after))
                reading = await self._take(request, exchange, body)
                del body
            async with exchange.follow():
                for inbox in exchange.inboxes:
                    assert inbox.job is not None
                    reading.engine.submit(inbox.job)
                if reading.dialect is not None:
                    await self._send_stream(request, exchange, send, reading.dialect)
                else:
                    ends = [await inbox.last() for inbox in exchange.inboxes]
                    _note(scope, ends)
                    content = compact(reading.whole(ends))
                    await exchange.send(send, _start("application/json"))
                    await exchange.send(send, {"type": "http.response.body", "body": content})

    async def _take(self, request: Request, exchange: Exchange, body: bytes) -> Reading:
        """A request, its jobs made; nothing of its pictures is kept when this returns.

        Raises:
            Failure: there is nothing to be made of it.
        """
        state = self._state

        def read() -> Reading:
            reading = self._read(state, request, body)
            note(request.scope, model=reading.engine.name)
            most = state.settings.rows + state.settings.waiting
            if len(reading.makers) > most:
                raise Failure(
                    400, f"inputs: {len(reading.makers)} questions; give at most {most}", "too_many", "inputs"
                )
            if not state.fetches and len(reading.makers) == 1:
                # Each change of threads costs a new request 0.3 ms or more: what may share a thread does.
                _make_job(exchange.inboxes[0], reading.makers[0])
                return dataclasses.replace(reading, makers=())
            return reading

        try:
            exchange.open_inbox()
            reading = await state.read(read)
            for place, make in enumerate(reading.makers):
                inbox = exchange.open_inbox() if place else exchange.inboxes[0]
                await state.decode(partial(_make_job, inbox, make))
            return dataclasses.replace(reading, makers=())
        except CatpError as error:
            raise failure_of(error, request.scope["catp"]["request_id"]) from error

    async def _send_stream(self, request: Request, exchange: Exchange, send: Send, dialect: Dialect) -> None:
        """Events as they come; however it goes, the last one says that it is the last. What fails before the first
        one is a response of its own."""

        async def say(*parts: bytes) -> None:
            await exchange.send(send, {"type": "http.response.body", "body": b"".join(parts), "more_body": True})

        (inbox,) = exchange.inboxes
        event = await inbox.next()
        await exchange.send(send, _start("text/event-stream; charset=utf-8"))
        try:
            opening = [_event(part) for part in dialect.opening()]
            while isinstance(event, Piece):
                if event.text:
                    await say(*opening, _event(dialect.piece(event.text)))
                    opening = []
                event = await inbox.next()
            assert isinstance(event, Finished)
            closing = [_event(part) for part in dialect.closing(event)]
            await say(*opening, *closing, b"" if dialect.end is None else _data(dialect.end.encode()))
            _note(request.scope, [event])
        except Failure as failure:
            note(request.scope, failed=failure)
            if failure.status == 499:
                return
            await say(_event(dialect.failed(failure)))
        await exchange.send(send, {"type": "http.response.body", "body": b""})


def _make_job(inbox: Inbox, make: Maker) -> None:
    """Its job for an inbox."""
    inbox.job = make(inbox.tell)


def _event(content: Mapping[str, object]) -> bytes:
    return _data(compact(content))


def _data(content: bytes) -> bytes:
    return b"data: " + content + b"\n\n"


def _start(kind: str) -> dict[str, Any]:
    headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _note(scope: Scope, ends: Sequence[End]) -> None:
    """Numbers of answers, for the log."""
    finished = [end for end in ends if isinstance(end, Finished)]
    if finished:
        note(
            scope,
            prompt_tokens=sum(end.answer.num_kept + end.prompt_tokens for end in finished),
            generated_tokens=sum(len(end.answer.token_ids) for end in finished),
            finish_reason=finished[-1].reason,
            image_cached=finished[-1].cached,
        )
