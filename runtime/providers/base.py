"""The interface between the orchestrator and whatever executes a graph.

Tensors live where the engine wants them. The orchestrator hands device tensors from engine to engine and
copies to the host only what a person or the next decision needs; it never asks which provider it has.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import ml_dtypes  # noqa: F401  from here on, numpy knows "bfloat16": the KV cache of a bf16 bundle
import numpy as np

from catp.runtime.bundle.folder import Bundle


class DeviceTensor(Protocol):
    """A tensor in an engine's memory."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def numpy(self) -> np.ndarray[Any, Any]:
        """A copy in host memory (on the CPU possibly a view, valid until the tensor is written again)."""
        ...

    def rows(self, first: int, count: int) -> DeviceTensor:
        """Some of its rows, [count, ...]: the same memory under a shape of its own, to bind to a graph."""
        ...


Value = np.ndarray[Any, Any] | DeviceTensor
"""What an input may be bound to: host arrays are copied to the device."""


def to_host(value: Value) -> np.ndarray[Any, Any]:
    """The value as a host array."""
    return value if isinstance(value, np.ndarray) else value.numpy()


class Step(Protocol):
    """A graph with its inputs and outputs bound; may be run many times."""

    def update(self, name: str, value: np.ndarray[Any, Any]) -> None:
        """Copy new content of the same shape into the bound input `name`."""
        ...

    def run(self) -> dict[str, DeviceTensor]:
        """Execute once; the outputs by name. A preallocated output is the same tensor every time."""
        ...


class Engine(Protocol):
    """One graph, loaded and ready."""

    only_profiles: bool
    """Whether it serves no call of another kind than those that it was built for: whole prompts, and single tokens."""

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceTensor:
        """A new tensor in the engine's memory."""
        ...

    def copy_rows(
        self,
        source: DeviceTensor,
        rows: np.ndarray[Any, Any],
        target: DeviceTensor,
        target_rows: np.ndarray[Any, Any],
        length: int,
    ) -> None:
        """Copy rows from tensor to tensor, which never leave the engine's memory: target[t, ..., :length, :] is
        source[r, ..., :length, :] for each pair of rows.

        Args:
            source, target: [B, ..., M, d], alike but for B and M; or one tensor, no row of which is in both lists.
            rows, target_rows: int64, equally long.
            length: of the last dimension but one, what is copied.
        """
        ...

    def cache_slots(self, needed: int) -> int:
        """How many slots a KV cache for `needed` tokens gets.

        Raises:
            UsageError: more than this engine can have.
        """
        ...

    def bind(self, inputs: Mapping[str, Value], outputs: Mapping[str, DeviceTensor] | None = None) -> Step:
        """Prepare a step.

        Args:
            inputs: every input of the graph; host arrays are copied to the device.
            outputs: preallocated outputs. The same tensor may be bound to an input and to an output: the KV
                cache is updated in place that way. Outputs not named are allocated by the engine.
        """
        ...


class Moment(Protocol):
    """A point in what a provider was given to do."""

    def milliseconds_since(self, earlier: Any) -> float:
        """From another moment of the same provider on; waits until both have come."""
        ...


class HostMoment:
    """Now, on the host's clock: for providers whose calls return when they are done."""

    def __init__(self) -> None:
        self._seconds = time.perf_counter()

    def milliseconds_since(self, earlier: HostMoment) -> float:
        return 1e3 * (self._seconds - earlier._seconds)


class Provider(Protocol):
    """A library that executes graphs: ONNX Runtime on a CPU or a GPU, TensorRT."""

    name: str

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        """Load one graph of a bundle."""
        ...

    def synchronize(self) -> None:
        """Wait until everything that was run is done."""
        ...

    def moment(self) -> Moment:
        """The end of everything that was run so far, to measure between two of them."""
        ...
