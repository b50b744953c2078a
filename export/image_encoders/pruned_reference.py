"""An encoder that prunes, by Hugging Face's modules and numpy: what the graphs are compared with.

Nothing here shares code with the graphs: attention is computed by the checkpoint's own modules, merges in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from catp.export.encoder_pruning.guidance import Guidance
from catp.export.encoder_pruning.reference import (
    NEAR_TIE,
    LayerState,
    count_tokens,
    mapped,
    merging_pairs,
    score_tokens,
    unit_keys,
)
from catp.runtime.bundle.encoder_pruning import Merge, Rule


@dataclass(frozen=True)
class PrunedEmbeds:
    """Image embeddings of B pictures, and how they came about."""

    embeds: torch.Tensor  # float32 [B, I, W], CLS first
    positions: np.ndarray  # int64 [B, I-1]: patch of each other token, -1 for merged ones
    sizes: torch.Tensor  # float32 [B, I-1]: patches averaged into each, by the merge "nearest"; else 1
    counts: tuple[int, ...]  # by pruning layer, how many tokens were kept: all that came in where nothing was pruned
    left: tuple[np.ndarray, ...]  # int64 [B, N'] by pruning layer: patches after it, -1 for merged ones
    in_doubt: np.ndarray  # bool [B]: rounding may keep other tokens of this picture


@torch.no_grad()
def encode(
    vision_model: Any,
    pixel_values: torch.Tensor,
    rule: Rule,
    merge: Merge,
    layers: Sequence[int],
    kept_tokens: Sequence[int] | None,
    temperature: float | None,
    guidance: Guidance | None,
    scorers: torch.Tensor | None = None,
) -> PrunedEmbeds:
    """Run the encoder.

    Args:
        pixel_values: float32 [B, 3, H, W].
        kept_tokens: a count for each of `layers`; None: MADTP's own, from `temperature`.
    """
    clip = hasattr(vision_model, "pre_layrnorm")  # its layer norms: one before the layers, the last for CLS alone
    hidden = vision_model.embeddings(pixel_values)
    if clip:
        hidden = vision_model.pre_layrnorm(hidden)
    batch, patches = hidden.shape[0], hidden.shape[1] - 1
    positions = np.tile(np.arange(patches), (batch, 1))
    sizes = np.ones((batch, patches))
    in_doubt = np.zeros(batch, bool)
    counts, left = [], []
    for index, layer in enumerate(vision_model.encoder.layers):
        state, output = _attend(layer, hidden, positions, sizes if merge == "nearest" else None)
        hidden = hidden + output
        if index in layers:
            state = replace(
                state,
                tokens=mapped(state.tokens, guidance, index),
                after=hidden.double().numpy(),
                depth=index / len(vision_model.encoder.layers),
                scorer=None if scorers is None else scorers[index].double().numpy(),
            )
            guide = None if guidance is None else guidance.space_dict.double().numpy()
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
            left.append(positions)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    embeds = hidden if clip else vision_model.post_layernorm(hidden)
    counted = torch.from_numpy(sizes).float()
    return PrunedEmbeds(embeds, positions, counted, tuple(counts), tuple(left), in_doubt)


def _attend(
    layer: Any, hidden: torch.Tensor, positions: np.ndarray, sizes: np.ndarray | None
) -> tuple[LayerState, torch.Tensor]:
    """The state of a layer, and what its attention adds, [B, 1+N, W]."""
    attention, normed = layer.self_attn, layer.layer_norm1(hidden)
    batch, length, width = normed.shape
    heads = attention.num_heads
    clip = hasattr(attention, "q_proj")
    joint = (
        [getattr(attention, f"{part}_proj")(normed) for part in "qkv"] if clip else attention.qkv(normed).chunk(3, -1)
    )
    queries, keys, values = (part.view(batch, length, heads, width // heads).transpose(1, 2) for part in joint)
    if sizes is None:
        output, maps = attention(normed)
    else:  # a merged token counts as often as it has patches (arXiv 2210.09461, section 3)
        weights = torch.from_numpy(np.concatenate([np.ones((batch, 1)), sizes], 1)).float()
        exponentials = torch.exp(queries @ keys.transpose(2, 3) * attention.scale) * weights[:, None, None]
        maps = exponentials / exponentials.sum(-1, keepdim=True)
        close = attention.out_proj if clip else attention.projection
        output = close((maps @ values).transpose(1, 2).reshape(batch, length, width))
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
        kept, rest, takes = order[:count], order[count:], np.arange(len(of_row))
        if rule == "pitome":
            rest, takes = merging_pairs(-of_row, count)
            kept = np.setdiff1d(order, rest)
        if rule == "tome":  # in the order in which they came, as places decide in the next layer
            kept, takes = np.sort(kept), np.arange(1, len(of_row), 2)
        ranked = of_row[order]
        # Of pairs, the order of all that merge decides; of others, the last that is kept and the first that is not.
        gaps = np.diff(ranked[::-1][: 2 * len(rest) + 1]) if rule == "pitome" else ranked[count - 1] - ranked[count]
        unsure.append(np.min(gaps) <= NEAR_TIE * max(abs(ranked[count - 1]), of_row.std()))
        tokens = hidden[b, 1:].double().numpy()
        of_kept, position, size = tokens[kept], state.positions[b, kept], sizes[b, kept]
        if merge == "one":
            share = of_row[rest] / (of_row[rest].sum() + 1e-8)
            of_kept = np.concatenate([of_kept, (share[:, None] * tokens[rest]).sum(0, keepdims=True)])
            position, size = np.append(position, -1), np.append(size, 1.0)
        if merge == "nearest":
            of_kept, size = of_kept * size[:, None], size.copy()
            keys = unit_keys(state)[b]
            receiving = [i for i, place in enumerate(kept) if place in takes]
            for token in rest:
                into = max(receiving, key=lambda i: keys[kept[i]] @ keys[token])
                of_kept[into] += sizes[b, token] * tokens[token]
                size[into] += sizes[b, token]
            of_kept = of_kept / size[:, None]
        rows.append(np.concatenate([hidden[b, :1].double().numpy(), of_kept]))
        places.append(position)
        weights.append(size)
    return torch.from_numpy(np.stack(rows)).float(), np.stack(places), np.stack(weights), np.array(unsure)
