"""Text encoders that prune, by Hugging Face's modules and numpy: what their graphs are compared with.

One text at a time, its tokens in their own order: nothing here knows of pads, or of how a graph lays its rows out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from catp.export.encoder_pruning.guidance import Guidance
from catp.export.encoder_pruning.reference import LayerState, count_tokens, mapped, score_tokens
from catp.runtime.bundle.encoder_pruning import QuestionPruningSpec

Reading = Callable[[Any, torch.Tensor], torch.Tensor]
"""A layer's tokens [1, L, W] once they have read what there is beside the text; of one alone, the same."""


@torch.no_grad()
def encode(
    text_encoder: Any, input_ids: torch.Tensor, read: Reading, spec: QuestionPruningSpec, guidance: Guidance | None
) -> torch.Tensor:
    """A text by BLIP's encoder, float32 [1, S', W].

    Args:
        input_ids: int64 [1, S], without pads.
        read: the layer's cross-attention, before its MLP.
    """
    hidden = text_encoder.embeddings(input_ids)
    guide = None if guidance is None else guidance.space_dict.double().numpy()
    for index, layer in enumerate(text_encoder.encoder.layer):
        after, maps = layer.attention(hidden)
        state = _state(layer.attention.self, hidden, maps, guidance, index)
        scores = score_tokens(spec.rule, state, guide)[0]
        tokens = len(scores)
        if spec.thousandths is None:
            assert guide is not None and spec.temperature is not None
            count, _ = count_tokens(scores[None], state.tokens[:, 1:] @ guide.T, spec.temperature)
        else:
            count = _share(tokens, spec.thousandths)
        # Best first, as the graph has them, also where all stay: what is compared is keys and values one by one.
        order = np.argsort(-scores, kind="stable")
        own = after[0, 1:].double().numpy()
        left = np.concatenate([own[order[:count]], _merged(own, scores, order[count:])])
        after = torch.cat([after[:, :1], torch.from_numpy(left).float()[None]], 1)
        hidden = layer.feed_forward_chunk(read(layer, after))
    return hidden


@torch.no_grad()
def encode_causally(
    text_model: Any, input_ids: torch.Tensor, spec: QuestionPruningSpec, guidance: Guidance | None
) -> torch.Tensor:
    """A text by CLIP's encoder: its state at the token that ends it, float32 [1, W].

    Args:
        input_ids: int64 [1, S], without pads, the first token and the end included.
    """
    end = text_model.config.eos_token_id
    row = input_ids[0]
    last = int(row.argmax() if end == 2 else (row == end).int().argmax())
    hidden = text_model.embeddings(input_ids)[:, : last + 1]
    guide = None if guidance is None else guidance.space_dict.double().numpy()
    for index, layer in enumerate(text_model.encoder.layers):
        length = hidden.shape[1]
        unseen = torch.full((length, length), -torch.inf).triu(1)[None, None]
        normed = layer.layer_norm1(hidden)
        added, maps = layer.self_attn(normed, attention_mask=unseen)
        hidden = hidden + added
        words = np.arange(1, length - 1)
        if len(words):
            # Whoever scores sees the end first, in the place of CLS, and no token before the words.
            places = np.concatenate([[length - 1], words])
            before = mapped((hidden - added).double().numpy()[:, places], guidance, index)
            state = LayerState(*_causal_parts(layer.self_attn, normed, maps, places), before, words[None])
            scores = score_tokens(spec.rule, state, guide)[0]
            assert spec.thousandths is not None
            order = np.argsort(-scores, kind="stable")
            count = _share(len(scores), spec.thousandths)
            own = hidden[0, 1:-1].double().numpy()
            left = np.concatenate([own[np.sort(order[:count])], _merged(own, scores, order[count:])])
            hidden = torch.cat([hidden[:, :1], torch.from_numpy(left).float()[None], hidden[:, -1:]], 1)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    return text_model.final_layer_norm(hidden[:, -1])


def _share(tokens: int, thousandths: int) -> int:
    """The number of tokens that a fraction keeps, rounded up; all of them where at most one would go."""
    count = max(1, -(-tokens * thousandths // 1000))
    return count if count <= tokens - 2 else tokens


def _merged(own: np.ndarray, scores: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The token [1, W] that those at these places become; [0, W] where there are none."""
    if not len(rest):
        return own[:0]
    share = scores[rest] / (scores[rest].sum() + 1e-8)
    found: np.ndarray = (share[:, None] * own[rest]).sum(0, keepdims=True)
    return found


def _state(
    attention: Any, hidden: torch.Tensor, maps: torch.Tensor, guidance: Guidance | None, index: int
) -> LayerState:
    def heads(project: torch.nn.Module) -> torch.Tensor:
        return project(hidden).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2).double()

    positions = np.arange(hidden.shape[1] - 1)[None]
    outputs = (maps.double() @ heads(attention.value)).numpy()
    keys = heads(attention.key).numpy()
    tokens = mapped(hidden.double().numpy(), guidance, index)
    return LayerState(maps.double().numpy(), outputs, keys, tokens, positions)


def _causal_parts(
    attention: Any, normed: torch.Tensor, maps: torch.Tensor, places: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, outputs of heads and keys of the tokens at these places."""

    def heads(project: torch.nn.Module) -> torch.Tensor:
        return project(normed).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2).double()

    outputs = (maps.double() @ heads(attention.v_proj)).numpy()
    return (
        maps.double().numpy()[:, :, places][..., places],
        outputs[:, :, places],
        heads(attention.k_proj).numpy()[:, :, places],
    )
