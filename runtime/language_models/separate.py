"""Seats that share nothing: each prompt has a cache of its own and takes its steps alone.

For language models whose rows can't share a step: of an encoder-decoder, each row attends to encoded tokens of another
length; and where activations are scaled by what a call brings, one row's numbers would depend on the others'.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from catp.runtime.language_models.base import Batch, Decoding, LanguageModel
from catp.runtime.language_models.seats import Seat, check_fit


class Separate:
    """So many seats, of so many tokens at most, an image's among them if they count."""

    def __init__(
        self,
        model: LanguageModel,
        graph: str,
        vocabulary: int,
        rows: int,
        length: int,
        counts_image: bool = True,
    ) -> None:
        self._counts_image = counts_image
        self.graph = graph
        self.vocabulary = vocabulary
        self.capacity = rows
        self.length = length
        self._model = model
        self._taken: dict[Seat, Decoding] = {}
        self._tokens: dict[Seat, int] = {}

    def admit(self, batch: Batch, new_tokens: int) -> Seat:
        decoding = self._model.begin(batch, check_fit(batch, new_tokens, self.length, self._counts_image))
        token = int(decoding.prefill()[0])
        used = {seat.row for seat in self._taken}
        row = next(row for row in range(self.capacity) if row not in used)
        seat = Seat(row, int(decoding.limits[0]))
        self._taken[seat], self._tokens[seat] = decoding, token
        return seat

    def step(self, tokens: Mapping[Seat, int]) -> None:
        for seat, token in tokens.items():
            self._tokens[seat] = int(self._taken[seat].step(np.array([token]))[0])

    def token(self, seat: Seat) -> int:
        return self._tokens[seat]

    def logits(self, seat: Seat) -> np.ndarray:
        return self._taken[seat].logits()[0]

    def free(self, seat: Seat) -> None:
        self._taken.pop(seat, None)
        self._tokens.pop(seat, None)
