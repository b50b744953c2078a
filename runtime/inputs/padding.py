"""Token ids of several texts as one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def padded(prompts: Sequence[Sequence[int]], pad_token_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids int64 [B,S], padded on the right, and each row's own length int64 [B]."""
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    ids = np.full((len(prompts), int(lengths.max())), pad_token_id, np.int64)
    for row, prompt in zip(ids, prompts):
        row[: len(prompt)] = prompt
    return ids, lengths
