"""The scoring rules by the formulas of the papers, in float64 by numpy: what graphs are compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from catp.export.encoder_pruning.guidance import Guidance
from catp.export.encoder_pruning.rules.random_order import MOST_PATCHES
from catp.runtime.bundle.encoder_pruning import Rule

NEAR_TIE = 2e-5
"""Two scores closer than this, relative to the larger, may change places between implementations."""


@dataclass(frozen=True)
class LayerState:
    """The parts of a layer that scores are made of, float64: B pictures, H heads, N tokens after CLS."""

    probabilities: np.ndarray  # [B, H, 1+N, 1+N]
    head_outputs: np.ndarray  # [B, H, 1+N, d]
    keys: np.ndarray  # [B, H, 1+N, d]
    tokens: np.ndarray  # [B, 1+N, S], the layer's input as the dictionary is asked for it: see `mapped`
    positions: np.ndarray  # int64 [B, N]
    after: np.ndarray | None = None  # [B, 1+N, W], after attention and residual
    depth: float = 0.0  # of the layer: 0 of the first, near 1 of the last
    scorer: np.ndarray | None = None  # [W], this layer's of a taught scorer


def mapped(tokens: np.ndarray, guidance: Guidance | None, layer: int) -> np.ndarray:
    """A layer's tokens [B, L, W] as MADTP looks them up in its dictionary, [B, L, S]: mapped (CLIP), or as they are.

    https://github.com/double125/MADTP, models/utils.py, Query_model.
    """
    if guidance is None or guidance.maps is None:
        return tokens
    found = guidance.maps[layer]
    return np.einsum("blw,sw->bls", tokens, found.weight.double().numpy()) + found.bias.double().numpy()


def madtp_scores(state: LayerState, space_dict: np.ndarray) -> np.ndarray:
    """arXiv 2403.02991, section 3: a third each of self-attention, dictionary and CLS, [B, N]."""
    found = (state.tokens[:, 1:] @ space_dict.T).max(2)
    guidance = found / (found.sum(1, keepdims=True) + 1e-8)
    given, from_cls = _given_and_cls(state)
    return (given + guidance + from_cls) / 3


def _given_and_cls(state: LayerState) -> tuple[np.ndarray, np.ndarray]:
    a: np.ndarray = state.probabilities
    o: np.ndarray = np.linalg.norm(state.head_outputs, axis=-1)
    given = np.zeros_like(state.positions, np.float64)
    from_cls = np.zeros_like(given)
    for j in range(given.shape[1]):
        given[:, j] = a[:, :, 1:, 1 + j].max(1).sum(1)
        from_cls[:, j] = (a[:, :, 0, 1 + j] * o[:, :, 1 + j]).sum(1) / (o[:, :, 1 + j].sum(1) + 1e-8)
    return given / (given.sum(1, keepdims=True) + 1e-8), from_cls


def _self_cls(state: LayerState) -> np.ndarray:
    given, from_cls = _given_and_cls(state)
    return (given + from_cls) / 2


def _cls(state: LayerState) -> np.ndarray:
    return state.probabilities[:, :, 0, 1:].mean(1)


def _random(state: LayerState) -> np.ndarray:
    table = np.random.default_rng(0).random(MOST_PATCHES, np.float32).astype(np.float64)
    return table[state.positions]


def _tome(state: LayerState) -> np.ndarray:
    keys = unit_keys(state)
    scores = np.full(state.positions.shape, 2.0)  # at odd places: what others merge into
    for row, of_row in enumerate(keys):
        for place in range(0, len(of_row), 2):
            scores[row, place] = -max(of_row[place] @ other for other in of_row[1::2])
    return scores


def _pitome(state: LayerState) -> np.ndarray:
    keys = unit_keys(state)
    margin = 0.9 * (1 - state.depth)
    scores = np.zeros(state.positions.shape)
    for row, of_row in enumerate(keys):
        for i, key in enumerate(of_row):
            cosines = of_row @ key
            scores[row, i] = -np.mean([c if c >= margin else np.exp(c - margin) - 1 for c in cosines])
    return scores


def _norm(state: LayerState) -> np.ndarray:
    assert state.after is not None
    found: np.ndarray = np.linalg.norm(state.after[:, 1:], axis=2)
    return found


def _taught(state: LayerState) -> np.ndarray:
    assert state.after is not None and state.scorer is not None
    tokens = state.after[:, 1:]
    standard = (tokens - tokens.mean(2, keepdims=True)) / np.sqrt(tokens.var(2, keepdims=True) + 1e-6)
    found: np.ndarray = standard @ state.scorer
    return found


def merging_pairs(energy: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """PiToMe's choice of one picture (arXiv 2405.16148, section 3.2): places that merge, and places that receive.

    Args:
        energy: float64 [N].
        count: tokens that are left.
    """
    crowd = np.argsort(-energy, kind="stable")[: 2 * (len(energy) - count)]
    return crowd[0::2], crowd[1::2]


def unit_keys(state: LayerState) -> np.ndarray:
    keys = state.keys[:, :, 1:].mean(1)
    return keys / np.linalg.norm(keys, axis=-1, keepdims=True)


_SCORES: dict[Rule, Callable[[LayerState], np.ndarray]] = {
    "self-cls": _self_cls, "cls": _cls, "random": _random, "tome": _tome, "pitome": _pitome, "norm": _norm,
    "taught": _taught,
}  # fmt: skip


def score_tokens(rule: Rule, state: LayerState, space_dict: np.ndarray | None) -> np.ndarray:
    """A rule's scores, float64 [B, N]."""
    if rule != "madtp":
        return _SCORES[rule](state)
    assert space_dict is not None
    return madtp_scores(state, space_dict)


def count_tokens(scores: np.ndarray, guidance: np.ndarray, temperature: float) -> tuple[int, np.ndarray]:
    """How many tokens MADTP keeps of each picture of the batch, N where it prunes nothing; bool [B] in doubt."""
    tokens = scores.shape[1]
    if temperature <= 0:
        return tokens, np.zeros(len(scores), bool)
    powers = np.exp((guidance - guidance.max(1, keepdims=True)) / temperature)
    averages = (powers / powers.sum(1, keepdims=True) * scores[:, :, None]).sum(1)
    threshold = averages.min(1, keepdims=True)
    above = scores > threshold
    unsure = (np.abs(scores - threshold) <= NEAR_TIE * np.abs(threshold)).any(1)
    count = int(above.sum(1).max())
    return (tokens, unsure) if count < 1 or tokens - count <= 1 else (count, unsure)
