"""Large graphs take turns in memory: verifying a bundle needs no more of it than its largest graph does.

A call that was made before is answered from memory, without the graph: loading that again takes longest of all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from catp.export.checkpoints.residency import trim
from catp.runtime.bundle.folder import Bundle
from catp.runtime.providers.base import DeviceTensor, Engine, Moment, Provider, Step, Value, to_host

TOGETHER = 1_000_000_000
"""Bytes of float32 weights that may be in memory at a time: loading them again takes longer than using them.

ONNX Runtime computes half precision in float32 on a CPU, and makes float32 copies of all weights for it.
"""


def take_turns(bundle: Bundle) -> bool:
    """Whether the graphs of `bundle` are large together."""
    return 4 * sum(graph.parameters for graph in bundle.manifest.graphs.values()) > TOGETHER


class Turns:
    """A provider of one bundle's graphs: an engine loads its graph when it is used, and drops the one used before.

    Calls whose outputs the engine allocates are remembered with their outputs; a KV cache is written in place, and
    what reads it is computed every time.
    """

    def __init__(self, provider: Provider) -> None:
        self.name = provider.name
        self.remembered: dict[tuple[str, bytes], dict[str, DeviceTensor]] = {}
        self._provider = provider
        self._loaded: tuple[str, Engine] | None = None

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        return _Turn(self, bundle, graph)

    def synchronize(self) -> None:
        self._provider.synchronize()

    def moment(self) -> Moment:
        return self._provider.moment()

    def load(self, turn: _Turn) -> Engine:
        if self._loaded is None or self._loaded[0] != turn.graph:
            self._loaded = None  # first: there is no room for both
            trim()
            self._loaded = turn.graph, self._provider.engine(turn.bundle, turn.graph)
        return self._loaded[1]


class _Turn:
    """An engine that is loaded while it is its turn. Steps are to be dropped before another engine is used."""

    only_profiles = False  # what verifies is ONNX Runtime, which takes every call

    def __init__(self, turns: Turns, bundle: Bundle, graph: str) -> None:
        self.bundle = bundle
        self.graph = graph
        self._turns = turns

    def copy_rows(
        self,
        source: DeviceTensor,
        rows: np.ndarray[Any, Any],
        target: DeviceTensor,
        target_rows: np.ndarray[Any, Any],
        length: int,
    ) -> None:
        self._turns.load(self).copy_rows(source, rows, target, target_rows, length)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        return self._turns.load(self).zeros(shape, dtype)

    def cache_slots(self, needed: int) -> int:
        return self._turns.load(self).cache_slots(needed)

    def bind(self, inputs: Mapping[str, Value], outputs: Mapping[str, DeviceTensor] | None = None) -> Step:
        if not outputs:
            return _Call(self._turns, self, {name: to_host(value) for name, value in inputs.items()})
        given = {name: value.array if isinstance(value, _Copy) else value for name, value in inputs.items()}
        return _Step(self._turns.load(self).bind(given, outputs), outputs)


class _Call:
    """A step all of whose outputs are its own: it is computed once for the same inputs."""

    def __init__(self, turns: Turns, turn: _Turn, inputs: dict[str, np.ndarray[Any, Any]]) -> None:
        self._turns, self._turn, self._inputs = turns, turn, inputs

    def update(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self._inputs[name] = value

    def run(self) -> dict[str, DeviceTensor]:
        key = self._turn.graph, _digest(self._inputs)
        if key not in self._turns.remembered:
            step = _Step(self._turns.load(self._turn).bind(self._inputs), {})
            self._turns.remembered[key] = step.run()
        return self._turns.remembered[key]


def _digest(inputs: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    found = hashlib.sha256()
    for name, value in sorted(inputs.items()):
        found.update(repr((name, value.dtype.name, value.shape)).encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.digest()


class _Step:
    """A step whose outputs outlive its engine: ONNX Runtime's own keep everything that the engine allocated."""

    def __init__(self, step: Step, preallocated: Mapping[str, DeviceTensor]) -> None:
        self._step = step
        self._preallocated = preallocated

    def update(self, name: str, value: np.ndarray[Any, Any]) -> None:
        self._step.update(name, value)

    def run(self) -> dict[str, DeviceTensor]:
        return {
            name: tensor if name in self._preallocated else _Copy(tensor.numpy().copy())
            for name, tensor in self._step.run().items()
        }


@dataclass(frozen=True)
class _Copy:
    """A tensor in host memory."""

    array: np.ndarray[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.array

    def rows(self, first: int, count: int) -> _Copy:
        return _Copy(self.array[first : first + count])
