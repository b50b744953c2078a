"""BLIP's attention modules while they are traced: Hugging Face's compute products, and look no function up."""

from __future__ import annotations

from typing import Any

import torch
from transformers.models.blip.modeling_blip import BlipAttention
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention

from catp.export.graphs import operators


def _vision(module: BlipAttention, hidden_states: torch.Tensor, **__: Any) -> tuple[torch.Tensor, None]:
    """[B,I,D] -> [B,I,D]; every token sees every other."""
    joint = module.qkv(hidden_states).unflatten(-1, (3, module.num_heads, module.head_dim))
    query, key, value = joint.permute(2, 0, 3, 1, 4)
    attended, _ = operators.attention(module, query, key, value, None, module.scale)
    return module.projection(attended.flatten(2)), None


def _text(
    module: BlipTextSelfAttention,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    encoder_hidden_states: torch.Tensor | None = None,
    cache: Any = None,
    **__: Any,
) -> tuple[torch.Tensor, None]:
    """[B,S,D] -> [B,S,H x d].

    Args:
        attention_mask: bool, broadcast to [B,H,S,M], also where an encoder is read: Hugging Face drops that mask.
        encoder_hidden_states: what is read in place of the tokens themselves; its content does not matter where `cache`
            has its keys and values.
        cache: an EncoderDecoderCache, or None.
    """
    query = heads(module.query(hidden_states), module.attention_head_size)
    if encoder_hidden_states is not None and cache is not None:
        read = cache.cross_attention_cache.layers[module.layer_idx]
        key, value = read.keys, read.values
    else:
        source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        key = heads(module.key(source), module.attention_head_size)
        value = heads(module.value(source), module.attention_head_size)
        if cache is not None:
            key, value = cache.self_attention_cache.layers[module.layer_idx].update(key, value)
    attended, _ = operators.attention(module, query, key, value, attention_mask)
    return attended.flatten(2), None


def heads(projected: torch.Tensor, width: int) -> torch.Tensor:
    """[B,L,H x d] to [B,H,L,d]."""
    return projected.unflatten(-1, (-1, width)).transpose(1, 2)


operators.REPLACED.update({BlipAttention: _vision, BlipTextSelfAttention: _text})
