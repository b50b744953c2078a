"""A question encoder that prunes, by Hugging Face's modules and numpy: what its graph is compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from catp.export.encoder_pruning.reference import LayerState, count_tokens, score_tokens
from catp.runtime.bundle.encoder_pruning import Rule


@torch.no_grad()
def encode(
    text_encoder: Any,
    input_ids: torch.Tensor,
    image_embeds: torch.Tensor,
    rule: Rule,
    thousandths: int | None,
    temperature: float | None,
    space_dict: torch.Tensor | None,
) -> torch.Tensor:
    """Encoding of one question as a decoder reads it, float32 [1, S', W].

    Args:
        input_ids: int64 [1, S], without pads.
        image_embeds: float32 [1, I, W].
        thousandths: of the tokens after the first that each layer keeps, rounded up; None: MADTP's own count.
    """
    hidden = text_encoder.embeddings(input_ids)
    guide = None if space_dict is None else space_dict.double().numpy()
    for layer in text_encoder.encoder.layer:
        after, maps = layer.attention(hidden)
        state = _state(layer.attention.self, hidden, maps)
        scores = score_tokens(rule, state, guide)[0]
        tokens = len(scores)
        if thousandths is None:
            assert guide is not None and temperature is not None
            count, _ = count_tokens(scores[None], state.tokens[:, 1:] @ guide.T, temperature)
        else:
            count = max(1, -(-tokens * thousandths // 1000))
            count = count if count <= tokens - 2 else tokens
        # Best first, as the graph has them, also where all stay: what is compared is keys and values one by one.
        order = np.argsort(-scores, kind="stable")
        kept, rest = order[:count], order[count:]
        own = after[0, 1:].double().numpy()
        left = own[kept]
        if len(rest):
            share = scores[rest] / (scores[rest].sum() + 1e-8)
            left = np.concatenate([left, (share[:, None] * own[rest]).sum(0, keepdims=True)])
        after = torch.cat([after[:, :1], torch.from_numpy(left).float()[None]], 1)
        read, _ = layer.crossattention(after, encoder_hidden_states=image_embeds)
        hidden = layer.feed_forward_chunk(read)
    return hidden


def _state(attention: Any, hidden: torch.Tensor, maps: torch.Tensor) -> LayerState:
    def heads(project: torch.nn.Module) -> torch.Tensor:
        return project(hidden).unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2).double()

    positions = np.arange(hidden.shape[1] - 1)[None]
    outputs = (maps.double() @ heads(attention.value)).numpy()
    keys = heads(attention.key).numpy()
    return LayerState(maps.double().numpy(), outputs, keys, hidden.double().numpy(), positions)
