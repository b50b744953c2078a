"""Engines of one bundle by graph and place, each loaded once, and a provider that composes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.placements import ON_CPU, Place
from catp.runtime.providers.automatic import open_place
from catp.runtime.providers.base import DeviceTensor, Engine, HostMoment, Provider, Step, Value, to_host

Inputs = dict[str, np.ndarray]
"""Inputs of one call of a graph, by name, in host memory."""


class Loads(Protocol):
    """Whatever has engines by graph and place."""

    def engine(self, graph: str, place: Place) -> Engine:
        """The engine, loaded if it is not yet."""
        ...


class Engines:
    """All engines that were asked for; a language model is in memory once, however many compositions read it."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        self.bundle = bundle
        self._threads = threads
        self._providers: dict[Place, Provider] = {}
        self._engines: dict[tuple[str, Place], Engine] = {}

    def provider(self, place: Place) -> Provider:
        """The provider of a place.

        Raises:
            UsageError: it is not installed, or this machine has no such device.
        """
        if place not in self._providers:
            self._providers[place] = open_place(place, self._threads)
        return self._providers[place]

    def engine(self, graph: str, place: Place) -> Engine:
        """The engine, loaded if it is not yet.

        Raises:
            CatpError: the provider can't load the graph.
        """
        key = graph, place
        if key not in self._engines:
            self._engines[key] = self.provider(place).engine(self.bundle, graph)
        return self._engines[key]

    def drop(self, graph: str, place: Place) -> None:
        """Forget an engine that no composition needs any more."""
        self._engines.pop((graph, place), None)


class Composition:
    """A provider that takes each graph's engine from where `places` says, the CPU's where it says nothing.

    Args:
        seen: gets the inputs of every call, by graph; None: nothing looks.
    """

    name = "auto"

    def __init__(self, engines: Loads, places: Mapping[str, Place], seen: dict[str, list[Inputs]] | None = None):
        self._engines = engines
        self._places = places
        self._seen = seen

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        engine = self._engines.engine(graph, self._places.get(graph, ON_CPU))
        return engine if self._seen is None else _SeenEngine(engine, self._seen.setdefault(graph, []))

    def synchronize(self) -> None:
        """Nothing to wait for: a run returns when it is done."""

    def moment(self) -> HostMoment:
        return HostMoment()


class _SeenEngine:
    """An engine whose calls' inputs are copied."""

    def __init__(self, engine: Engine, calls: list[Inputs]) -> None:
        self._engine, self._calls = engine, calls
        self.only_profiles = engine.only_profiles
        self.zeros = engine.zeros
        self.copy_rows = engine.copy_rows
        self.cache_slots = engine.cache_slots

    def bind(self, inputs: Mapping[str, Value], outputs: Mapping[str, DeviceTensor] | None = None) -> Step:
        if not outputs:  # what has a cache is measured nowhere
            self._calls.append({name: np.array(to_host(value)) for name, value in inputs.items()})
        return self._engine.bind(inputs, outputs)
