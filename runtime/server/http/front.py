"""The front of the application: ids, keys, the log and the errors of every request, whatever its route."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catp.runtime.limits import BODY_BYTES, REQUEST_ID_CHARACTERS
from catp.runtime.server.failures import Failure
from catp.runtime.server.log import describe, log
from catp.runtime.server.protocols.operations import Operation
from catp.runtime.server.settings import ServerSettings
from catp.runtime.server.tracing import Tracing

_DISCARDED_SECONDS = 2.0

_ID = re.compile(rf"[A-Za-z0-9._-]{{1,{REQUEST_ID_CHARACTERS}}}")


def note(scope: Scope, **facts: Any) -> None:
    """Facts about a request, for its line in the log."""
    scope["catp"].update(facts)


class Front:
    """Everything before the routes.

    Args:
        operations: those that are served; which of them need a key, and end when the server drains.
        draining: whether the server has been told to stop.
        finished: called with the facts about each request when it is over.
        tracing: of requests, if there is any.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        operations: Iterable[Operation],
        draining: Callable[[], bool],
        finished: Callable[[dict[str, Any]], None] = lambda facts: None,
        tracing: Tracing | None = None,
    ) -> None:
        self.app = app
        self._operations = {operation.path: operation for operation in operations}
        self._tracing = tracing
        self._digests = [_digest(key) for key in settings.keys]
        self._draining = draining
        self._finished = finished

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no WebSockets, and nothing to start or to end
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        facts: dict[str, Any] = {"request_id": request_id, "status": 499}
        scope["catp"] = facts
        scope["app"] = self  # Starlette's routes raise where there is one, instead of answering as plain text
        began, started = time.monotonic(), False
        operation = self._operations.get(scope["path"])
        traced = operation is None or operation.traced
        span = self._tracing.begin(scope["method"], scope["path"], headers) if self._tracing and traced else None

        async def answer(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                facts["status"] = message["status"]
                MutableHeaders(scope=message).append("x-request-id", request_id)
                MutableHeaders(scope=message).append("x-content-type-options", "nosniff")
            await send(message)

        body = _Body(receive)
        try:
            failure = None
            try:
                self._check(scope["path"], headers)
                await self.app(scope, body.receive, answer)
            except Failure as error:
                failure = error
            except HTTPException as error:
                allow = (error.headers or {}).get("Allow")
                code = error.detail.lower().replace(" ", "_")
                failure = Failure(error.status_code, str(error.detail), code, allow=allow)
            except Exception as error:
                log("bug", request_id=request_id, **describe(error))
                failure = Failure(
                    500, f"internal error; the server's log has more about {request_id}", "internal_error"
                )
            if failure is not None:
                facts["failed"] = failure
                if not started and failure.status != 499:
                    await body.discard()
                    await JSONResponse(failure.body(scope["path"]), failure.status, failure.headers())(
                        scope, receive, answer
                    )
        finally:
            self._end(scope, facts, time.monotonic() - began)
            if self._tracing is not None and span is not None:
                self._tracing.end(span, facts)

    def _check(self, path: str, headers: Headers) -> None:
        operation = self._operations.get(path)
        if operation is not None and not operation.needs_key:
            return
        if self._digests:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            # Digests have one length, and all are compared: the time tells nothing about the keys.
            found = [hmac.compare_digest(_digest(key.strip()), digest) for digest in self._digests]
            if scheme.lower() != "bearer" or not any(found):
                raise Failure(401, "no valid API key: send Authorization: Bearer KEY", "invalid_api_key")
        if self._draining() and not (operation is not None and operation.while_draining):
            raise Failure(503, "the server is stopping", "stopping", retry_after=5)

    def _end(self, scope: Scope, facts: dict[str, Any], seconds: float) -> None:
        failed = facts.pop("failed", None)
        if isinstance(failed, Failure):
            facts["status"], facts["code"] = failed.status, failed.code
        self._finished({**facts, "path": scope["path"]})
        operation = self._operations.get(scope["path"])
        if operation is None or operation.logged:
            log("request", method=scope["method"], path=scope["path"][:200], ms=round(1e3 * seconds, 1), **facts)


class _Body:
    """The body of a request on its way in."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._whole = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._whole = self._whole or message["type"] != "http.request" or not message.get("more_body", False)
        return message

    async def discard(self) -> None:
        """Read what a refused request still sends: while it does, its client sees no answer."""
        read = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DISCARDED_SECONDS):
                while not self._whole and read <= BODY_BYTES:
                    read += len((await self.receive()).get("body", b""))


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
