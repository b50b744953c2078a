"""The state that all routes share, on the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from catp.runtime.limits import DECODERS, FETCHES
from catp.runtime.server.failures import Failure
from catp.runtime.server.http.exchange import Gate
from catp.runtime.server.metrics import Metrics
from catp.runtime.server.model.engine import ModelEngine
from catp.runtime.server.settings import ServerSettings
from catp.runtime.server.tracing import Tracing

Result = TypeVar("Result")


class State:
    """The state of the whole server, on the event loop.

    Args:
        engines: by the name of their model; a reloaded one takes the place of the old one.
    """

    def __init__(self, engines: dict[str, ModelEngine], settings: ServerSettings, metrics: Metrics) -> None:
        self.engines = engines
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        rooms = len(engines) * (settings.rows + settings.waiting)
        self.gate = Gate(rooms, settings.waiting_bytes)
        self.decoders = ThreadPoolExecutor(DECODERS, "catp decode")
        # Those that wait for other hosts keep nobody from decoding.
        self.fetches = bool(settings.media_domains)
        self.readers = ThreadPoolExecutor(FETCHES, "catp read") if self.fetches else self.decoders
        self.tracing = None if settings.traces is None else Tracing(settings.traces)
        metrics.gauge("catp_draining", lambda: self.draining)

    def engine(self, name: str, param: str | None = "model") -> ModelEngine:
        """Raises Failure where no model has that name."""
        if name not in self.engines:
            known = ", ".join(self.engines)
            raise Failure(404, f"model {name[:100]!r} is not served here; served: {known}", "model_not_found", param)
        return self.engines[name]

    @property
    def ready(self) -> bool:
        return not self.draining and all(engine.ready for engine in self.engines.values())

    @property
    def retry_after(self) -> int:
        return max(engine.retry_after for engine in self.engines.values())

    async def read(self, work: Callable[[], Result]) -> Result:
        """A body read, off the event loop; so many at a time."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, work)

    async def decode(self, work: Callable[[], Result]) -> Result:
        """Pictures decoded, likewise."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, work)

    def close(self) -> None:
        """End the threads, and send the last traces."""
        if self.tracing is not None:
            self.tracing.close()
        for pool in (self.decoders, self.readers):
            pool.shutdown(wait=False, cancel_futures=True)
