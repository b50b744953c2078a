"""Slots: rows of one KV cache, each of a prompt of its own, that take their steps together.

The graph's positions, slots and mask are per row, so rows of different length, kept count and family of prompt share a
step. A row is read by a pass of its own, straight into its place. A step runs over the first rows up to the last
running one, in buckets, so that one prompt does not pay for the room of eight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from catp.runtime.language_models.base import Batch, Output
from catp.runtime.language_models.decoder_only import DecoderOnly, bind_prefill
from catp.runtime.language_models.kv_cache import Cache
from catp.runtime.language_models.outputs import read_output
from catp.runtime.language_models.seats import Seat, check_fit
from catp.runtime.providers.base import DeviceTensor, Step

_IDLE_TOKEN: Final = 0
"""Fed to rows that nobody has; what they give is not read, and what they write is overwritten."""


@dataclass(frozen=True)
class _Outputs:
    """The outputs that a row's are among.

    Args:
        rows: how many there should be.
    """

    tensors: Mapping[str, DeviceTensor]
    place: int
    rows: int


class Slots:
    """A cache for so many rows of so many tokens, all of them zeros at first.

    Raises:
        UsageError: the machine has not the memory, or the engine not the length.
    """

    def __init__(self, model: DecoderOnly, rows: int, length: int) -> None:
        self.graph = "language_model"
        self.vocabulary = model.vocabulary
        self.capacity = rows
        self._model = model
        self._cache = Cache(model.engine, model.graph, rows, length)
        self._zeros = Cache(model.engine, model.graph, 1, length)
        self.length = self._cache.slots
        self._taken: list[Seat | None] = [None] * rows
        self._positions = np.zeros(rows, np.int64)
        self._written = np.zeros(rows, np.int64)  # tokens of each row in the cache
        self._outputs: list[_Outputs | None] = [None] * rows
        self._steps: dict[int, Step] = {}

    @property
    def buckets(self) -> list[int]:
        """Numbers of rows that a step may have, ascending: powers of two, and all."""
        return sorted({min(1 << power, self.capacity) for power in range(self.capacity.bit_length() + 1)})

    def admit(self, batch: Batch, new_tokens: int) -> Seat:
        model = self._model
        limit = check_fit(batch, int(model.limits(batch, new_tokens)[0]), self.length)
        row = self._taken.index(None)
        step = bind_prefill(
            model.engine,
            model.graph,
            batch.prefix_embeds,
            batch.prefix_positions,
            batch.text_start,
            batch.prompts,
            model.text.pad_token_id,
            self._cache.rows(row, 1),
        )
        seat = self._taken[row] = Seat(row, limit)
        try:
            self._outputs[row] = _Outputs(step.run(), 0, 1)
            self.token(seat)  # it is there
        except BaseException:
            self.free(seat)
            raise
        length = len(batch.prompts[0])
        self._positions[row] = batch.text_start + length
        self._written[row] = batch.prefix_embeds.shape[1] + length
        return seat

    def step(self, tokens: Mapping[Seat, int]) -> None:
        fed = {seat.row: token for seat, token in tokens.items() if self._taken[seat.row] is seat}
        if len(fed) < len(tokens) or len(fed) < sum(seat is not None for seat in self._taken):
            raise ValueError("a step feeds every seat that is taken, and no other")
        rows = next(bucket for bucket in self.buckets if bucket > max(fed))
        ids = np.full((rows, 1), _IDLE_TOKEN, np.int64)
        for row, token in fed.items():
            ids[row] = token
        if rows not in self._steps:
            # From here on nothing is allocated or bound for so many rows.
            self._steps[rows] = self._model.bind_step(self._cache.rows(0, rows), rows)
        step = self._steps[rows]
        step.update("input_ids", ids)
        step.update("position_start", self._positions[:rows])
        step.update("write_indices", self._written[:rows])  # rows that nobody has write to their first slot
        outputs = step.run()
        for row in fed:
            self._outputs[row] = _Outputs(outputs, row, rows)
            self._positions[row] = min(self._positions[row] + 1, self._model.max_positions - 1)
            self._written[row] += 1

    def token(self, seat: Seat) -> int:
        return int(self._read(seat, "next_token"))

    def logits(self, seat: Seat) -> np.ndarray:
        return self._read(seat, "logits")

    def _read(self, seat: Seat, output: Output) -> np.ndarray:
        found = self._outputs[seat.row]
        assert found is not None and self._taken[seat.row] is seat
        return read_output(self.graph, found.tensors, output, found.rows, self.vocabulary)[found.place]

    def free(self, seat: Seat) -> None:
        row = seat.row
        if self._taken[row] is not seat:
            return
        # Zeros in its place: a masked slot still enters a product, where NaN would spread, and nobody's prompt stays
        # under another's.
        everything, there = self._cache.slots, np.array([row])
        self._zeros.copy_rows(self._model.engine, np.array([0]), self._cache, there, everything)
        self._positions[row] = self._written[row] = 0
        self._taken[row] = self._outputs[row] = None
