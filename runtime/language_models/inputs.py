"""Preparation of a batch for the graphs of a language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from catp.runtime.errors import BundleError
from catp.runtime.language_models.base import Batch
from catp.runtime.providers.base import Engine, Value, to_host


def prefix_of_prompts(engine: Engine, batch: Batch, dtype: str) -> Value:
    """Prefix embeddings [B,k,D], a row for every prompt.

    Args:
        dtype: of the embeddings, which stay in the engine's memory if that is where they are.
    """
    embeds = batch.prefix_embeds
    if batch.images is None:
        return embeds
    rows = np.asarray(batch.images, np.int64)
    if isinstance(embeds, np.ndarray):
        return embeds[rows]
    every = engine.zeros((len(rows), *embeds.shape[1:]), dtype)
    engine.copy_rows(embeds, rows, every, np.arange(len(rows)), embeds.shape[1])
    return every


def positions_of_prompts(batch: Batch) -> Value:
    """Positions int64 [B,k] of the prefix, a row for every prompt."""
    positions = batch.prefix_positions
    return positions if batch.images is None else to_host(positions)[np.asarray(batch.images, np.int64)]


def check_vocabulary(prompts: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Raises BundleError where a token is none of the language model's: an engine may read anything in its place."""
    for prompt in prompts:
        if prompt and not 0 <= min(prompt) <= max(prompt) < vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < vocabulary)
            raise BundleError(
                f"tokenizer.json: it makes token {wrong} of the prompt, and the language model knows {vocabulary}; "
                "export the bundle again"
            )
