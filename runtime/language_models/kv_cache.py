"""The KV cache: one buffer per layer and kind, which the language model graph reads and writes in place."""

from __future__ import annotations

import copy

import numpy as np

from catp.runtime.bundle.footprint import cache_bytes
from catp.runtime.bundle.manifest import GraphSpec
from catp.runtime.errors import UsageError
from catp.runtime.providers.base import DeviceTensor, Engine
from catp.runtime.system.memory import WORTH_A_LOOK, total_memory


class Cache:
    """KV cache buffers under the graph's input names and, the same ones, under its output names.

    They start as zeros, for every batch anew: a masked slot still enters a product, and 0 times uninitialised memory,
    or times what an overflow left behind, may be NaN.

    Raises:
        UsageError: the engine can't have that many slots, or the machine has not the memory.
    """

    def __init__(self, engine: Engine, graph: GraphSpec, batch: int, slots: int) -> None:
        self.slots = engine.cache_slots(slots)
        _check_memory(graph, batch, self.slots)
        self.inputs: dict[str, DeviceTensor] = {}
        self.outputs: dict[str, DeviceTensor] = {}
        for spec in graph.inputs:
            if spec.name.startswith("past_key_values."):
                _, heads, _, width = spec.shape
                buffer = engine.zeros((batch, int(heads), self.slots, int(width)), spec.dtype)
                self.inputs[spec.name] = buffer
                self.outputs[spec.name.replace("past_key_values.", "present.")] = buffer

    def rows(self, first: int, count: int) -> Cache:
        """Some of its rows: the same memory under a shape of its own."""
        part = copy.copy(self)
        views = {name: buffer.rows(first, count) for name, buffer in self.inputs.items()}
        part.inputs = views
        part.outputs = {name.replace("past_key_values.", "present."): view for name, view in views.items()}
        return part

    def copy_rows(self, engine: Engine, rows: np.ndarray, target: Cache, target_rows: np.ndarray, slots: int) -> None:
        """Copy the first `slots` slots of `rows` to `target_rows` of a cache, which may be this one; see Engine."""
        for name, buffer in self.inputs.items():
            engine.copy_rows(buffer, rows, target.inputs[name], target_rows, slots)


def _check_memory(graph: GraphSpec, rows: int, slots: int) -> None:
    """Raises UsageError where the machine could never hold the cache, or an answer's scores."""
    needed = cache_bytes(graph, rows, slots)
    for spec in graph.outputs:
        if spec.name == "logits":
            needed += rows * int(spec.shape[1]) * np.dtype(spec.dtype).itemsize
    if needed < WORTH_A_LOOK:
        return
    there = total_memory()
    if there is not None and needed > there:
        raise UsageError(
            f"{rows} rows of {slots} tokens: their cache takes {needed / 1e9:,.1f} GB, and this machine has "
            f"{there / 1e9:,.1f}; give fewer prompts or beams, or a smaller max_new_tokens"
        )
