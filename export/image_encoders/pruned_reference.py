"""An encoder that prunes, by Hugging Face's modules and numpy: what the graphs are compared with.

Nothing here shares code with the graphs: attention is computed by the checkpoint's own modules, scores and merges in
float64 by the formulas of the papers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from catp.runtime.bundle.encoder_pruning import Merge, Rule

NEAR_TIE = 2e-5
"""Two scores closer than this, relative to the larger, may change places between implementations."""


@dataclass(frozen=True)
class PrunedEmbeds:
    """Image embeddings of B pictures, and how they came about."""

    embeds: torch.Tensor  # float32 [B, I, W], CLS first
    positions: np.ndarray  # int64 [B, I-1]: patch of each other token, -1 for merged ones
    counts: tuple[int, ...]  # by pruning layer, how many tokens were kept: all that came in where nothing was pruned
    in_doubt: np.ndarray  # bool [B]: rounding may keep other tokens of this picture


@dataclass(frozen=True)
class LayerState:
    """The parts of a layer that scores are made of, float64: B pictures, H heads, N tokens after CLS."""

    probabilities: np.ndarray  # [B, H, 1+N, 1+N]
    head_outputs: np.ndarray  # [B, H, 1+N, d]
    keys: np.ndarray  # [B, H, 1+N, d]
    tokens: np.ndarray  # [B, 1+N, W], the layer's input
    positions: np.ndarray  # int64 [B, N]


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
    table = torch.rand(1 << 14, generator=torch.Generator().manual_seed(0)).double().numpy()
    return table[state.positions]


def _tome(state: LayerState) -> np.ndarray:
    keys = _unit_keys(state)
    scores = np.full(state.positions.shape, 2.0)  # at odd places: what others merge into
    for row, of_row in enumerate(keys):
        for place in range(0, len(of_row), 2):
            scores[row, place] = -max(of_row[place] @ other for other in of_row[1::2])
    return scores


def _unit_keys(state: LayerState) -> np.ndarray:
    keys = state.keys[:, :, 1:].mean(1)
    return keys / np.linalg.norm(keys, axis=-1, keepdims=True)


_SCORES: dict[Rule, Callable[[LayerState], np.ndarray]] = {
    "self-cls": _self_cls, "cls": _cls, "random": _random, "tome": _tome
}  # fmt: skip


def score_tokens(rule: Rule, state: LayerState, space_dict: np.ndarray | None) -> np.ndarray:
    """A rule's scores, float64 [B, N]."""
    if rule != "madtp":
        return _SCORES[rule](state)
    assert space_dict is not None
    return madtp_scores(state, space_dict)


@torch.no_grad()
def encode(
    vision_model: Any,
    pixel_values: torch.Tensor,
    rule: Rule,
    merge: Merge,
    layers: Sequence[int],
    kept_tokens: Sequence[int] | None,
    temperature: float | None,
    space_dict: torch.Tensor | None,
) -> PrunedEmbeds:
    """Run the encoder.

    Args:
        pixel_values: float32 [B, 3, H, W].
        kept_tokens: a count for each of `layers`; None: MADTP's own, from `temperature`.
    """
    hidden = vision_model.embeddings(pixel_values)
    batch, patches = hidden.shape[0], hidden.shape[1] - 1
    positions = np.tile(np.arange(patches), (batch, 1))
    sizes = np.ones((batch, patches))
    in_doubt = np.zeros(batch, bool)
    counts = []
    for index, layer in enumerate(vision_model.encoder.layers):
        state, output = _attend(layer, hidden, positions, sizes if merge == "nearest" else None)
        hidden = hidden + output
        if index in layers:
            guide = None if space_dict is None else space_dict.double().numpy()
            scores = score_tokens(rule, state, guide)
            if kept_tokens is not None:
                count = kept_tokens[list(layers).index(index)]
            else:
                assert guide is not None and temperature is not None
                count, unsure = count_tokens(scores, state.tokens[:, 1:] @ guide.T, temperature)
                in_doubt |= unsure
            counts.append(count)
            if count < scores.shape[1]:
                hidden, positions, sizes, unsure = _prune(hidden, state, scores, count, sizes, rule, merge)
                in_doubt |= unsure
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return PrunedEmbeds(vision_model.post_layernorm(hidden), positions, tuple(counts), in_doubt)


def _attend(
    layer: Any, hidden: torch.Tensor, positions: np.ndarray, sizes: np.ndarray | None
) -> tuple[LayerState, torch.Tensor]:
    """The state of a layer, and what its attention adds, [B, 1+N, W]."""
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    batch, length, width = normed.shape
    heads = attention.num_heads
    queries, keys, values = (
        part.view(batch, length, heads, width // heads).transpose(1, 2) for part in attention.qkv(normed).chunk(3, -1)
    )
    if sizes is None:
        output, maps = attention(normed)
    else:  # a merged token counts as often as it has patches (arXiv 2210.09461, section 3)
        weights = torch.from_numpy(np.concatenate([np.ones((batch, 1)), sizes], 1)).float()
        exponentials = torch.exp(queries @ keys.transpose(2, 3) * attention.scale) * weights[:, None, None]
        maps = exponentials / exponentials.sum(-1, keepdim=True)
        output = attention.projection((maps @ values).transpose(1, 2).reshape(batch, length, width))
    return (
        LayerState(
            maps.double().numpy(),
            (maps.double() @ values.double()).numpy(),
            keys.double().numpy(),
            hidden.double().numpy(),
            positions,
        ),
        output,
    )


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


def _prune(
    hidden: torch.Tensor,
    state: LayerState,
    scores: np.ndarray,
    count: int,
    sizes: np.ndarray,
    rule: Rule,
    merge: Merge,
) -> tuple[torch.Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """The tokens that go on, their patches and sizes, and bool [B]: rounding may keep others."""
    rows, places, weights, unsure = [], [], [], []
    for b, of_row in enumerate(scores):
        order = np.argsort(-of_row, kind="stable")
        kept, rest = order[:count], order[count:]
        unsure.append(of_row[kept[-1]] - of_row[rest[0]] <= NEAR_TIE * abs(of_row[kept[-1]]))
        tokens = hidden[b, 1:].double().numpy()
        of_kept, position, size = tokens[kept], state.positions[b, kept], sizes[b, kept]
        if merge == "one":
            share = of_row[rest] / (of_row[rest].sum() + 1e-8)
            of_kept = np.concatenate([of_kept, (share[:, None] * tokens[rest]).sum(0, keepdims=True)])
            position, size = np.append(position, -1), np.append(size, 1.0)
        if merge == "nearest":
            of_kept, size = of_kept * size[:, None], size.copy()
            keys = _unit_keys(state)[b]
            takes = [i for i, place in enumerate(kept) if rule != "tome" or place % 2 == 1]
            for token in rest:
                into = max(takes, key=lambda i: keys[kept[i]] @ keys[token])
                of_kept[into] += sizes[b, token] * tokens[token]
                size[into] += sizes[b, token]
            of_kept = of_kept / size[:, None]
        rows.append(np.concatenate([hidden[b, :1].double().numpy(), of_kept]))
        places.append(position)
        weights.append(size)
    return torch.from_numpy(np.stack(rows)).float(), np.stack(places), np.stack(weights), np.array(unsure)
