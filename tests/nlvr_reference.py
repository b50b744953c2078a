"""A BLIP for NLVR2 after its vision encoder, in numpy: the formulas of the official code, written from them alone.

https://github.com/salesforce/BLIP: models/nlvr_encoder.py (BertEmbeddings, BertLayer, BertAttention and BertSelfOutput
with `twin` and `merge`) and models/blip_nlvr.py (cls_head over the first token).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

Weights = Mapping[str, np.ndarray]
"""By their names in the model, float64."""

_ERF = np.vectorize(math.erf)
_UNSEEN = -10000.0  # what the official code adds to the score of a pad


def truth_logits(
    weights: Weights, ids: np.ndarray, mask: np.ndarray, first: np.ndarray, second: np.ndarray, heads: int, eps: float
) -> np.ndarray:
    """float64 [B, 2] of ids and mask [B, S], and the two images' tokens [B, I, Dv]."""
    own = {name.removeprefix("text_encoder."): value for name, value in weights.items()}
    hidden = own["embeddings.word_embeddings.weight"][ids]
    hidden = hidden + own["embeddings.position_embeddings.weight"][: ids.shape[1]]
    hidden = _norm(own, "embeddings.LayerNorm", hidden, eps)
    added = (1.0 - mask[:, None, None, :]) * _UNSEEN
    layers = 1 + max(int(name.split(".")[2]) for name in own if name.startswith("encoder.layer."))
    for number in range(layers):
        hidden = _layer(own, f"encoder.layer.{number}", hidden, added, first, second, heads, eps)
    inner = np.maximum(_linear(weights, "cls_head.0", hidden[:, 0]), 0)
    return _linear(weights, "cls_head.2", inner)


def _layer(
    own: Weights,
    at: str,
    hidden: np.ndarray,
    added: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    heads: int,
    eps: float,
) -> np.ndarray:
    read = _attention(own, f"{at}.attention.self", hidden, hidden, heads, added)
    hidden = _norm(
        own, f"{at}.attention.output.LayerNorm", _linear(own, f"{at}.attention.output.dense", read) + hidden, eps
    )
    hidden = cross(own, f"{at}.crossattention", hidden, first, second, heads, eps)
    inner = _linear(own, f"{at}.intermediate.dense", hidden)
    inner = inner * 0.5 * (1 + _ERF(inner / math.sqrt(2)))
    return _norm(own, f"{at}.output.LayerNorm", _linear(own, f"{at}.output.dense", inner) + hidden, eps)


def cross(
    own: Weights, at: str, hidden: np.ndarray, first: np.ndarray, second: np.ndarray, heads: int, eps: float
) -> np.ndarray:
    """The twin cross-attention of one layer, [B, S, W]."""
    read0 = _linear(own, f"{at}.output.dense0", _attention(own, f"{at}.self0", hidden, first, heads))
    read1 = _linear(own, f"{at}.output.dense1", _attention(own, f"{at}.self1", hidden, second, heads))
    if f"{at}.output.merge_layer.weight" in own:
        both = _linear(own, f"{at}.output.merge_layer", np.concatenate([read0, read1], -1))
    else:
        both = (read0 + read1) / 2
    return _norm(own, f"{at}.output.LayerNorm", both + hidden, eps)


def _attention(
    own: Weights, at: str, hidden: np.ndarray, source: np.ndarray, heads: int, added: np.ndarray | float = 0.0
) -> np.ndarray:
    def split(name: str, values: np.ndarray) -> np.ndarray:
        projected = _linear(own, f"{at}.{name}", values)
        return projected.reshape(*projected.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    query, key, value = split("query", hidden), split("key", source), split("value", source)
    scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1]) + added
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    read = weights / weights.sum(-1, keepdims=True) @ value
    return read.transpose(0, 2, 1, 3).reshape(hidden.shape)


def _linear(own: Weights, at: str, values: np.ndarray) -> np.ndarray:
    return values @ own[f"{at}.weight"].T + own[f"{at}.bias"]


def _norm(own: Weights, at: str, values: np.ndarray, eps: float) -> np.ndarray:
    centred = values - values.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * own[f"{at}.weight"] + own[f"{at}.bias"]
