"""A replica: a model with its thread, rows and cache, behind the same application that `catp-serve` has."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator

from ray import serve
from starlette.types import Message, Scope

from catp.runtime.cluster.settings import ClusterSettings
from catp.runtime.errors import CatpError
from catp.runtime.server.http.app import make_app
from catp.runtime.server.http.state import State
from catp.runtime.server.log import describe, log
from catp.runtime.server.metrics import Metrics
from catp.runtime.server.model.engine import ModelEngine
from catp.runtime.server.serving import loader

_LAST_WORDS_SECONDS = 2.0


class NotReady(Exception):
    """The model of a replica does not answer; another's may."""


class Replica:
    """A process of Ray with one model. It exists once its model is warm.

    Raises:
        CatpError: the bundle can't be loaded, or the file of keys read.
    """

    def __init__(self, settings: ClusterSettings) -> None:
        self._error: BaseException | None = None
        self._serving = False
        self._metrics = Metrics()
        load = loader(settings.bundle, provider=settings.provider, threads=settings.threads, engines=settings.engines)
        server = settings.read()
        self._engine = ModelEngine(settings.model, load, server, self._metrics, self._engine_ended)
        self._state = State({settings.model: self._engine}, server, self._metrics)
        self._app = make_app(self._state)
        self._engine.publish()
        self._engine.start()
        while not self._engine.ready:
            if self._error is not None:
                raise CatpError(f"model {settings.model!r}: {self._error}") from self._error
            time.sleep(0.05)
        self._serving = True

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.stop(_LAST_WORDS_SECONDS)

    def check_health(self) -> None:
        """Raises NotReady where the model's thread gives no sign of life: Ray then starts another replica."""
        if not self._engine.ready:
            raise NotReady(f"model {self._engine.name!r} is not ready")

    def metrics(self) -> tuple[str, str]:
        """This replica's name, and its metrics in Prometheus' format."""
        return str(serve.get_replica_context().replica_id.unique_id), self._state.metrics.text()

    async def answer(self, scope: Scope, body: bytes) -> AsyncIterator[Message]:
        """The messages with which the application answers a request; closing the iterator cancels it.

        Args:
            scope: ASGI's, of what can be pickled.

        Raises:
            NotReady: it has no answer, because the model is gone.
        """
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        del body
        gone = asyncio.Event()

        async def receive() -> Message:
            if waiting:
                return waiting.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def run() -> None:
            try:
                await self._app(scope, receive, messages.put)
            finally:
                messages.put_nowait(None)

        task = asyncio.create_task(run())
        try:
            while (message := await messages.get()) is not None:
                failed = message["type"] == "http.response.start" and message["status"] in (500, 503)
                if failed and not self._engine.ready:
                    self.check_health()
                yield message
        finally:
            gone.set()
            task.cancel()
            await asyncio.wait([task])

    def _engine_ended(self, error: BaseException) -> None:
        """In the model's thread. A process that serves has nothing left to do: Ray replaces it at once."""
        log("model_ended", **describe(error))
        self._error = error
        if self._serving:
            os._exit(1)
