"""The relay of requests: each to the replica that knows its picture, and to another one where that fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray.exceptions import NodeDiedError, ObjectLostError, RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from catp.runtime.cluster.affinity import picture_name
from catp.runtime.cluster.exposition import merge
from catp.runtime.cluster.replica import NotReady
from catp.runtime.limits import CONNECTIONS, DECODERS
from catp.runtime.server.failures import Failure
from catp.runtime.server.http.exchange import Gate, compact, read_body
from catp.runtime.server.http.front import note
from catp.runtime.server.log import log
from catp.runtime.server.metrics import CONTENT_TYPE
from catp.runtime.server.settings import ServerSettings

RETRIES = 2
"""Further tries of a request whose replica failed. Whatever a request did to one, it may do to so many more."""

_GRACE = 10.0
"""Seconds past a request's time, in which its replica says so itself."""

_SHORT_SECONDS = 5.0
"""That questions about the server itself take at most."""

_FAILED = (RayActorError, NodeDiedError, ObjectLostError, ReplicaUnavailableError, NotReady)
"""A replica that is gone, or soon will be."""

_SENT = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path")
"""Parts of a scope that a replica is told, beside headers."""


class Relay:
    """The routes of an ingress; an ASGI application."""

    def __init__(self, models: DeploymentHandle[Any], settings: ServerSettings) -> None:
        self._models = models
        self._settings = settings
        self._gate = Gate(CONNECTIONS, settings.waiting_bytes)
        self._readers = ThreadPoolExecutor(DECODERS, "catp read")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in ("/health/live", "/v2/health/live"):
            await JSONResponse({"status": "live"})(scope, receive, send)
        elif path == "/metrics":
            text = await _within(_SHORT_SECONDS, self._metrics())
            await PlainTextResponse(text, media_type=CONTENT_TYPE)(scope, receive, send)
        elif scope["method"] != "POST":
            await _within(_SHORT_SECONDS, self._hand(scope, b"", scope["catp"]["request_id"], send))
        else:
            await self._ask(scope, receive, send)

    async def _metrics(self) -> str:
        found = await self._models.broadcast("metrics").results_async(return_exceptions=True)
        return merge(dict(one for one in found if not isinstance(one, BaseException)))

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A question, until it is answered or its client goes away."""
        request = Request(scope, receive)
        with self._gate.hold() as chunks:  # until the end: another replica may have to read it
            body = await read_body(request, self._gate, chunks, self._settings)
            with self._gate.enter(1):
                length = request.headers.get("inference-header-content-length")
                name = await asyncio.get_running_loop().run_in_executor(self._readers, picture_name, body, length)
                seconds = self._settings.request_seconds + _GRACE
                answering = asyncio.create_task(_within(seconds, self._hand(scope, body, name, send)))
                watching = asyncio.create_task(_until_gone(receive))
                try:
                    await asyncio.wait({answering, watching}, return_when=asyncio.FIRST_COMPLETED)
                    if not answering.done():
                        raise Failure(499, "the client went away")
                    answering.result()
                finally:
                    for task in (answering, watching):
                        task.cancel()
                    await asyncio.wait({answering, watching})

    async def _hand(self, scope: Scope, body: bytes, name: str, send: Send) -> None:
        """Hand a request to a replica, and to the next one where that fails before a client has seen anything.

        Args:
            name: requests of the same name meet the same replica.

        Raises:
            Failure: no replica answers; or one failed within a response, of which no more can be said.
        """
        told = {**{part: scope[part] for part in _SENT if part in scope}, "headers": _headers(scope)}
        opening: Message | None = None  # held back until there is something to send after it
        started = False
        for attempt in range(1 + RETRIES):
            hint = name if attempt == 0 else f"{name} {attempt}"
            try:
                async with contextlib.aclosing(self._messages(told, body, hint)) as messages:
                    async for message in messages:
                        if message["type"] == "http.response.start":
                            opening = _opening(message)
                            continue
                        if opening is not None:
                            note(scope, attempts=attempt + 1)
                            started = True
                            await send(opening)
                            opening = None
                        await send(message)
                return
            except _FAILED as error:
                opening = None
                log(
                    "replica_failed",
                    request_id=scope["catp"]["request_id"],
                    attempt=attempt + 1,
                    error=type(error).__name__,
                    started=started,
                )
                if started:
                    break
            except BackPressureError:
                raise Failure(
                    429, "as many requests wait as may; try again later", "queue_full", retry_after=1
                ) from None
            except DeploymentUnavailableError:
                break
        failure = Failure(503, "no replica answers; try again later", "no_replica", retry_after=1)
        if not started:
            raise failure
        note(scope, failed=failure)
        await send({"type": "http.response.body", "body": b"data: " + compact(failure.body(scope["path"])) + b"\n\n"})

    async def _messages(self, told: dict[str, Any], body: bytes, hint: str) -> AsyncGenerator[Message, None]:
        """The messages of a replica's response; it is cancelled where they are not read to their end."""
        answer: Any = self._models.options(stream=True, session_id=hint).answer.remote(told, body)
        ended = False
        try:
            async for message in answer:
                yield message
            ended = True
        finally:
            if not ended:
                answer.cancel()


async def _within(seconds: float, work: Coroutine[Any, Any, Any]) -> Any:
    """Raises Failure where the work takes longer."""
    try:
        async with asyncio.timeout(seconds):
            return await work
    except TimeoutError:
        raise Failure(504, "no answer in time", "request_timeout") from None


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    """Headers of a request, with the id that its line in the log has here."""
    headers = MutableHeaders(raw=list(scope["headers"]))
    headers["x-request-id"] = scope["catp"]["request_id"]
    return headers.raw


def _opening(message: Message) -> Message:
    """The beginning of a replica's response, without headers that the front here writes again."""
    headers = MutableHeaders(raw=list(message["headers"]))
    del headers["x-request-id"], headers["x-content-type-options"]
    return {**message, "headers": headers.raw}
