"""Preparation of a batch for the graphs of a language model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from catp.runtime.errors import BundleError
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


def check_vocabulary(prompts: Sequence[Sequence[int]], vocabulary: int) -> None:
    """Raises BundleError where a token is none of the language model's: an engine may read anything in its place."""
    for prompt in prompts:
        if prompt and not 0 <= min(prompt) <= max(prompt) < vocabulary:
            wrong = next(token for token in prompt if not 0 <= token < vocabulary)
            raise BundleError(
                f"tokenizer.json: it makes token {wrong} of the prompt, and the language model knows {vocabulary}; "
                "export the bundle again"
            )
