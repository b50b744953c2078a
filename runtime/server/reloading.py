"""Reloading: each model's bundle is opened again beside it, and takes over when it is warm."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from catp.runtime.pipeline import Pipeline
from catp.runtime.server.http.state import State
from catp.runtime.server.log import describe, log
from catp.runtime.server.model.engine import ModelEngine

_LOOK = 0.05
"""Seconds between two looks at what is waited for."""

_LAST_STEP_SECONDS = 30.0
"""That the thread of a model has to end in once nothing is asked of it."""


class Reloading:
    """The replacement of a server's models, one after the other. Two of one model are in memory meanwhile.

    Args:
        loaders: of `Serving`.
        state: whose engines are replaced.
        ended: as of `ModelEngine`, once a model has taken over.
    """

    def __init__(
        self, loaders: Mapping[str, Callable[[], Pipeline]], state: State, ended: Callable[[BaseException], None]
    ) -> None:
        self._loaders = loaders
        self._state = state
        self._ended = ended
        self.retired: list[ModelEngine] = []
        """Models that were replaced and whose threads have not ended."""

    async def run(self) -> None:
        """Replace every model. One that can't be loaded leaves the old one in its place."""
        for name, load in self._loaders.items():
            if not self._state.draining:
                await self._replace(name, load)

    async def _replace(self, name: str, load: Callable[[], Pipeline]) -> None:
        errors: list[BaseException] = []
        took_over = False

        def ended(error: BaseException) -> None:
            (self._ended if took_over else errors.append)(error)

        state = self._state
        new = ModelEngine(name, load, state.settings, state.metrics, ended)
        self.retired.append(new)  # until it has taken over, the server's end is its end too
        new.start()
        while not new.ready and not errors and not state.draining:
            await asyncio.sleep(_LOOK)
        if errors:
            log("reload_failed", level="error", model=name, **describe(errors[0]))
        if errors or state.draining:
            await self._retire(new)
            return
        took_over, old = True, state.engines[name]
        self.retired[self.retired.index(new)] = old
        state.engines[name] = new
        new.publish()
        log("reloaded", model=name, changed=new.identity != old.identity)
        # Those that are let in may have asked the old one something, or be about to.
        before = state.gate.entered
        while state.gate.has_any_of_first(before):
            await asyncio.sleep(_LOOK)
        await self._retire(old)

    async def _retire(self, engine: ModelEngine) -> None:
        if await asyncio.to_thread(engine.stop, _LAST_STEP_SECONDS):
            self.retired.remove(engine)
