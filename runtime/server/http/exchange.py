"""One request on the event loop: its body, read within bounds, its job's events, whether its client is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.types import Send

from catp.runtime.server.failures import Failure
from catp.runtime.server.model.jobs import End, Event, Job, Piece
from catp.runtime.server.settings import ServerSettings

_GRACE = 5.0
"""Seconds past a request's deadline, in which the model's thread says so itself."""


class Gate:
    """The requests that are let in, and the bytes of their bodies that wait. On the event loop alone."""

    def __init__(self, requests: int, waiting_bytes: int) -> None:
        self._most = requests
        self._most_bytes = waiting_bytes
        self._inside: set[int] = set()  # requests by their numbers
        self.entered = 0
        """Requests that were let in so far."""
        self.bodies = 0  # on their way, or read and not yet made jobs of
        self.bytes = 0

    @property
    def requests(self) -> int:
        """Requests that are in."""
        return len(self._inside)

    def has_any_of_first(self, count: int) -> bool:
        """Whether one of the first so many that were let in is in still."""
        return any(number < count for number in self._inside)

    def check(self, retry_after: int) -> None:
        """Raises Failure where as many requests are in as may."""
        if self.requests >= self._most:
            message = f"{self.requests} requests are under way or wait already; try again later"
            raise Failure(429, message, "queue_full", retry_after=retry_after)

    @contextlib.contextmanager
    def enter(self, retry_after: int) -> Iterator[None]:
        """Let a request in until the block ends; raises Failure as `check`."""
        self.check(retry_after)
        number = self.entered
        self.entered += 1
        self._inside.add(number)
        try:
            yield
        finally:
            self._inside.remove(number)

    @contextlib.contextmanager
    def hold(self) -> Iterator[list[bytes]]:
        """A body's chunks, counted as long as the block lasts; see `take`."""
        chunks: list[bytes] = []
        self.bodies += 1
        try:
            yield chunks
        finally:
            self.bodies -= 1
            self.bytes -= sum(map(len, chunks))

    @property
    def empty(self) -> bool:
        """Whether no request is in, or on its way."""
        return self.requests == self.bodies == 0

    def take(self, chunks: list[bytes], chunk: bytes) -> None:
        """Raises Failure where too many bytes of all requests together wait."""
        if self.bytes + len(chunk) > self._most_bytes:
            raise Failure(429, "too many bytes of requests wait already; try again later", "queue_full", retry_after=1)
        chunks.append(chunk)
        self.bytes += len(chunk)


async def read_body(request: Request, gate: Gate, chunks: list[bytes], settings: ServerSettings) -> bytes:
    """The body.

    Raises:
        Failure: it is too large, too slow, or not JSON by its type.
    """
    # No page of another site can send these unasked. Triton's client sends no type, but a header that none can either.
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    tensors = not kind and "inference-header-content-length" in request.headers
    if kind not in ("application/json", "application/octet-stream") and not tensors:
        raise Failure(415, f"content-type {kind[:80]!r}: give application/json", "unsupported_media_type")
    limit = settings.body_bytes
    too_large = Failure(413, f"body: more than {limit:,} bytes; give a smaller one", "body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdigit() and int(length) > limit:
        raise too_large
    read = 0
    try:
        async with asyncio.timeout(settings.read_seconds):
            async for chunk in request.stream():
                read += len(chunk)
                if read > limit:
                    raise too_large
                gate.take(chunks, chunk)
    except TimeoutError:
        raise Failure(408, f"body: not whole within {settings.read_seconds:g} s", "read_timeout") from None
    except ClientDisconnect:
        raise Failure(499, "the client went away") from None
    return b"".join(chunks)


class Inbox:
    """The events of one job on the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.job: Job | None = None
        self._loop = loop
        self._events: asyncio.Queue[Event] = asyncio.Queue()

    def tell(self, event: Event) -> None:
        """Hand over an event, from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    def abandon(self) -> None:
        """Its client is gone, or no longer listens."""
        if self.job is not None:
            self.job.cancel()
        self._events.put_nowait(Failure(499, "the client went away"))

    async def next(self) -> Piece | End:
        """The next event.

        Raises:
            Failure: the job ended without an answer, or the client is gone.
        """
        try:
            async with asyncio.timeout(self.seconds_left):
                event = await self._events.get()
        except TimeoutError:
            raise Failure(504, "no answer in time", "request_timeout") from None
        if isinstance(event, Failure):
            raise event
        return event

    async def last(self) -> End:
        """The event with which the job ends."""
        while isinstance(event := await self.next(), Piece):
            pass
        return event

    @property
    def seconds_left(self) -> float:
        """Until the job should have ended, and has not said so itself."""
        assert self.job is not None
        return max(0.1, self.job.deadline + _GRACE - time.monotonic())


class Exchange:
    """A request and its jobs, until they end or its client goes away."""

    def __init__(self, request: Request) -> None:
        self._receive = request.receive
        self.inboxes: list[Inbox] = []

    def open_inbox(self) -> Inbox:
        self.inboxes.append(Inbox(asyncio.get_running_loop()))
        return self.inboxes[-1]

    @contextlib.asynccontextmanager
    async def follow(self) -> AsyncIterator[None]:
        """Cancel the jobs as soon as their client is gone, or the block ends before they do."""
        watch = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watch.cancel()
            self._abandon()  # of a job that has ended, nothing

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._abandon()

    def _abandon(self) -> None:
        for inbox in self.inboxes:
            inbox.abandon()

    async def send(self, send: Send, message: dict[str, Any]) -> None:
        """Send a part of a response.

        Raises:
            Failure: the client does not read it.
        """
        try:
            async with asyncio.timeout(max(inbox.seconds_left for inbox in self.inboxes)):
                await send(message)
        except TimeoutError:
            raise Failure(499, "the client does not read") from None


def compact(content: Any) -> bytes:
    """JSON without spaces, in UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
