"""Large graphs take turns in memory: verifying a bundle needs no more of it than its largest graph does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from catp.export.checkpoints.residency import trim
from catp.runtime.bundle.folder import Bundle
from catp.runtime.providers.base import DeviceTensor, Engine, Moment, Provider, Step, Value

TOGETHER = 1_000_000_000
"""Bytes of float32 weights that may be in memory at a time: loading them again takes longer than using them.

ONNX Runtime computes half precision in float32 on a CPU, and makes float32 copies of all weights for it.
"""


def taking_turns(provider: Provider, bundle: Bundle) -> Provider:
    """`provider`, and where the graphs of `bundle` are large together, one that has only one of them loaded."""
    weights = 4 * sum(graph.parameters for graph in bundle.manifest.graphs.values())
    return provider if weights <= TOGETHER else _Turns(provider)


class _Turns:
    """A provider whose engines load their graph when they are used, and drop that of the one used before."""

    def __init__(self, provider: Provider) -> None:
        self.name = provider.name
        self._provider = provider
        self._loaded: tuple[_Turn, Engine] | None = None

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        return _Turn(self, bundle, graph)

    def synchronize(self) -> None:
        self._provider.synchronize()

    def moment(self) -> Moment:
        return self._provider.moment()

    def load(self, turn: _Turn) -> Engine:
        if self._loaded is None or self._loaded[0] is not turn:
            self._loaded = None  # first: there is no room for both
            trim()
            self._loaded = turn, self._provider.engine(turn.bundle, turn.graph)
        return self._loaded[1]


class _Turn:
    """An engine that is loaded while it is its turn. Steps are to be dropped before another engine is used."""

    only_profiles = False  # what verifies is ONNX Runtime, which takes every call

    def __init__(self, turns: _Turns, bundle: Bundle, graph: str) -> None:
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
        given = {name: value.array if isinstance(value, _Copy) else value for name, value in inputs.items()}
        return _Step(self._turns.load(self).bind(given, outputs), outputs or {})


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
