"""The KV cache: one buffer per layer and kind, which the language model graph reads and writes in place."""

from __future__ import annotations

import numpy as np

from catp.runtime.bundle.manifest import GraphSpec
from catp.runtime.providers.base import DeviceTensor, Engine


class Cache:
    """KV cache buffers under the graph's input names and, the same ones, under its output names.

    They start as zeros, for every batch anew: a masked slot still enters a product, and 0 times uninitialised memory,
    or times what an overflow left behind, may be NaN.
    """

    def __init__(self, engine: Engine, graph: GraphSpec, batch: int, slots: int) -> None:
        self.slots = engine.cache_slots(slots)
        self.inputs: dict[str, DeviceTensor] = {}
        self.outputs: dict[str, DeviceTensor] = {}
        for spec in graph.inputs:
            if spec.name.startswith("past_key_values."):
                _, heads, _, width = spec.shape
                buffer = engine.zeros((batch, int(heads), self.slots, int(width)), spec.dtype)
                self.inputs[spec.name] = buffer
                self.outputs[spec.name.replace("past_key_values.", "present.")] = buffer

    def copy_rows(self, engine: Engine, rows: np.ndarray, target: Cache, target_rows: np.ndarray, slots: int) -> None:
        """Copy the first `slots` slots of `rows` to `target_rows` of a cache, which may be this one; see Engine."""
        for name, buffer in self.inputs.items():
            engine.copy_rows(buffer, rows, target.inputs[name], target_rows, slots)
