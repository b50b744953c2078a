"""Embeddings as OpenAI's API writes them (https://platform.openai.com/docs/api-reference/embeddings)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Literal

import numpy as np

from catp.runtime.server.model.jobs import Embedded
from catp.runtime.server.shapes import Embedding, EmbeddingList


def write_embeddings(
    model: str, found: Sequence[np.ndarray | Embedded], text_tokens: int, encoding: Literal["float", "base64"]
) -> EmbeddingList:
    """The body of a response.

    Args:
        found: in the order of the inputs, float32 [Dt] of a text, and the vectors of a picture.
        text_tokens: of all texts together.
    """
    data = [_write(index, given, encoding) for index, given in enumerate(found)]
    tokens = text_tokens + sum(len(given.kept_indices) for given in found if isinstance(given, Embedded))
    return {"object": "list", "model": model, "data": data, "usage": {"prompt_tokens": tokens, "total_tokens": tokens}}


def _write(index: int, given: np.ndarray | Embedded, encoding: Literal["float", "base64"]) -> Embedding:
    values = (given.vectors if isinstance(given, Embedded) else given).astype("<f4").reshape(-1)
    written = values.tolist() if encoding == "float" else base64.b64encode(values.tobytes()).decode()
    found: Embedding = {"object": "embedding", "index": index, "embedding": written}
    if isinstance(given, Embedded):
        found["catp"] = {"num_kept": len(given.kept_indices), "kept_indices": given.kept_indices}
    return found
