"""The life of a server: it listens while its models load, answers, drains, and ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from catp.runtime.errors import CatpError, UsageError
from catp.runtime.limits import CONNECTIONS, HEADER_BYTES, READ_SECONDS
from catp.runtime.pipeline import Pipeline
from catp.runtime.server.failures import Failure
from catp.runtime.server.http.app import make_app
from catp.runtime.server.http.state import State
from catp.runtime.server.log import describe, log
from catp.runtime.server.metrics import Metrics
from catp.runtime.server.model.engine import ModelEngine
from catp.runtime.server.reloading import Reloading
from catp.runtime.server.settings import ServerSettings

_EVENTS = {"uvicorn": "http", "opentelemetry": "traces", "catp": "provider"}
"""Events of the log that are words of libraries and of providers, by their loggers."""

_KEEP_ALIVE_SECONDS = 30
_LAST_WORDS_SECONDS = 2.0
"""In which streams that a drain cuts off send their error event, and threads end."""


class _Protocol(H11Protocol):
    """HTTP/1.1 with a bound on connections, and on the time that a request's headers take."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        # asyncio leaves it out of sockets that were made without naming TCP; a piece of a stream would wait for an
        # acknowledgement, 40 ms.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect_headers()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._cancel()
        elif self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            self._expect_headers()  # of another request on the same connection

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def _expect_headers(self) -> None:
        self._deadline = self.loop.call_later(READ_SECONDS, self.transport.abort)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class _Lines(logging.Handler):
    """Words of libraries as lines of the log."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        fields = {} if error is None else describe(error)
        log(
            _EVENTS[record.name.partition(".")[0]],
            level=record.levelname.lower(),
            message=record.getMessage(),
            **fields,
        )


class _Server(uvicorn.Server):
    """uvicorn's server, which on a signal drains before it closes its socket.

    Args:
        told: called on a signal, with how many there were.
    """

    def __init__(self, config: uvicorn.Config, told: Callable[[int], None]) -> None:
        super().__init__(config)
        self._told = told
        self._signals = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._signals += 1
        self._told(self._signals)


class Serving:
    """A server and its models.

    Args:
        loaders: open a bundle each, by the name under which it is served.
        listening: called with the server's address.
        leave: ends the process with an exit code while a graph still runs in its thread: what ends it otherwise would
            take memory away under the graph.
    """

    def __init__(
        self,
        loaders: Mapping[str, Callable[[], Pipeline]],
        settings: ServerSettings,
        listening: Callable[[str], None] = lambda address: None,
        leave: Callable[[int], object] = os._exit,
    ) -> None:
        self.settings = settings
        self._listening = listening
        self._leave = leave
        self.metrics = Metrics()
        self.engines = {
            name: ModelEngine(name, load, settings, self.metrics, self._engine_ended) for name, load in loaders.items()
        }
        self.state = State(self.engines, settings, self.metrics)
        self.app = make_app(self.state)
        self._reloading = Reloading(loaders, self.state, self._engine_ended)
        self._reload = False
        self._error: BaseException | None = None
        self._told_at: float | None = None
        self._now = False
        self._ended = False

    def run(self) -> None:
        """Serve until a signal, and drain.

        Raises:
            UsageError: the address can't be listened on.
            CatpError: a bundle can't be loaded, a model's thread has ended, or answers were cut off.
        """
        listener = _listen(self.settings)
        for library in _EVENTS:
            spoken = logging.getLogger(library)
            spoken.handlers, spoken.propagate = [_Lines(logging.WARNING)], False
        config = uvicorn.Config(
            self.app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=int(_LAST_WORDS_SECONDS),
            h11_max_incomplete_event_size=HEADER_BYTES,
        )
        server = _Server(config, self.told)
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        log("listening", url=address, models=list(self.engines), needs_key=bool(self.settings.keys))
        self._listening(address)
        for engine in self.engines.values():
            engine.publish()
            engine.start()
        cut_off = False

        async def live() -> None:
            nonlocal cut_off
            if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self.reload)
            serve = asyncio.create_task(server.serve(sockets=[listener]))
            cut_off = await self._until_drained(serve)
            server.should_exit = True
            await serve

        asyncio.run(live())
        engines = (*self.engines.values(), *self._reloading.retired)
        ended = [engine.stop(_LAST_WORDS_SECONDS) for engine in engines]
        self.state.close()
        log("stopped", cut_off=cut_off)
        error = self._error
        if error is not None and not isinstance(error, CatpError):
            error = CatpError(f"a model's thread has ended ({type(error).__name__}); the log says where")
        if error is None and cut_off:
            error = CatpError("answers were cut off: they took longer than the drain")
        if not all(ended):
            if error is not None:
                print(f"error: {error}", file=sys.stderr, flush=True)
            self._leave(0 if error is None else 1)
        if error is not None:
            raise error

    def told(self, times: int) -> None:
        """A signal came: the first one drains, the second one ends."""
        self.state.draining = True
        self._told_at = self._told_at or time.monotonic()
        self._now = times > 1

    def reload(self) -> None:
        """Have every bundle opened again, while the server answers with what it has."""
        self._reload = True

    def _engine_ended(self, error: BaseException) -> None:
        log("model_ended", **describe(error))
        self._error, self._ended = error, True

    async def _until_drained(self, serve: asyncio.Task[None]) -> bool:
        """Whether answers were cut off."""
        gate = self.state.gate
        reloading: asyncio.Task[None] | None = None
        while not self._ended and not serve.done():
            await asyncio.sleep(0.05)
            if reloading is not None and reloading.done():
                reloading.result()
                reloading = None
            if self._told_at is None:
                if self._reload and reloading is None:
                    self._reload, reloading = False, asyncio.create_task(self._reloading.run())
                continue
            if gate.empty:
                return False
            if self._now or time.monotonic() - self._told_at > self.settings.drain_seconds:
                break
        for engine in self.engines.values():
            engine.drop_all(Failure(503, "the server is stopping: the answer is cut off", "stopping"))
        cut_off = not gate.empty
        until = time.monotonic() + _LAST_WORDS_SECONDS
        while not gate.empty and time.monotonic() < until:
            await asyncio.sleep(0.05)
        return cut_off


def _listen(settings: ServerSettings) -> socket.socket:
    """Raises UsageError where the address is taken, or none of this machine's."""
    host, port = settings.host, settings.port
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--host {host} --port {port}: can't listen there ({reason}); give another") from None
    return listener


def loader(bundle: str, **options: Any) -> Callable[[], Pipeline]:
    """Opens a bundle when it is called; options as of `Pipeline.load`."""
    return lambda: Pipeline.load(bundle, **options)
