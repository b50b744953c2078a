"""When a row ends."""

from __future__ import annotations

import numpy as np


class Answers:
    """The rows of a batch while they grow.

    Args:
        limits: int64 [B], the most tokens that each may have, at least 1.
        ends: tokens that end a row.
    """

    def __init__(self, limits: np.ndarray, ends: frozenset[int]) -> None:
        self.token_ids: list[list[int]] = [[] for _ in limits]
        self.running = np.ones(len(limits), bool)  # bool [B], changed in place
        self._limits = limits.tolist()
        self._ends = ends

    def append(self, tokens: np.ndarray) -> None:
        """Append one token int64 [B] to each row that still runs; of a finished one it means nothing."""
        for row, token in enumerate(tokens.tolist()):
            if self.running[row]:
                ids = self.token_ids[row]
                ids.append(token)
                self.running[row] = len(ids) < self._limits[row] and token not in self._ends
