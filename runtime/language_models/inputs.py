"""What language models make of a batch before their graphs can read it."""

from __future__ import annotations

import numpy as np

from catp.runtime.language_models.base import Batch
from catp.runtime.providers.base import Engine, Value, to_host


def prefix_of_prompts(engine: Engine, batch: Batch, dtype: str) -> tuple[Value, Value]:
    """Prefix embeddings [B,k,D] and positions int64 [B,k], a row for every prompt.

    Args:
        dtype: of the embeddings, which stay in the engine's memory if that is where they are.
    """
    embeds, positions, images = batch.prefix_embeds, batch.prefix_positions, batch.images
    if images is None:
        return embeds, positions
    rows = np.asarray(images, np.int64)
    positions = to_host(positions)[rows]
    if isinstance(embeds, np.ndarray):
        return embeds[rows], positions
    every = engine.zeros((len(rows), *embeds.shape[1:]), dtype)
    engine.copy_rows(embeds, rows, every, np.arange(len(rows)), embeds.shape[1])
    return every, positions
