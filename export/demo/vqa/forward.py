"""The forward pass of a BLIP that answers questions, with several questions a picture and pruning where it is wanted.

The modules and weights are those of Hugging Face's `BlipForQuestionAnswering`; without pruning so are the results. What
is new: all questions of a picture share its cross-attention keys and values, and a layer may prune between attention
and MLP (question encoder: between self-attention and cross-attention).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F
from transformers import BlipForQuestionAnswering

from catp.export.demo.vqa.pruning import TokenPruning
from catp.export.demo.vqa.untrained import PAD


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, L, W] to [B, H, L, d]."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def _attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Probabilities [B, H, L, L] and context [B, H, L, d]; mask bool [B, L] of the keys."""
    logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    probabilities = logits.masked_fill(~mask[:, None, None], -torch.inf).softmax(-1)
    return probabilities, probabilities @ value


def image_embeds(
    model: BlipForQuestionAnswering, pixel_values: torch.Tensor, pruning: TokenPruning | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Image embeddings float32 [B, 1+N, W] and which of them are valid, bool [B, 1+N]."""
    vision: Any = model.vision_model
    x = vision.embeddings(pixel_values)
    valid = torch.ones(x.shape[:2], dtype=torch.bool)
    for layer in vision.encoder.layers:
        attention = layer.self_attn
        query, key, value = (
            _heads(part, attention.num_heads) for part in attention.qkv(layer.layer_norm1(x)).chunk(3, -1)
        )
        if pruning is None:
            context = F.scaled_dot_product_attention(query, key, value)
            x = x + attention.projection(context.transpose(1, 2).flatten(2))
        else:
            probabilities, context = _attention(query, key, value, valid)
            attended = x + attention.projection(context.transpose(1, 2).flatten(2))
            x, valid = pruning.prune(x, attended, probabilities, context, valid)
        x = x + layer.mlp(layer.layer_norm2(x))
    return vision.post_layernorm(x), valid


def question_embeds(
    model: BlipForQuestionAnswering,
    questions: torch.Tensor,
    image: torch.Tensor,
    image_valid: torch.Tensor,
    pruning: TokenPruning | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Question embeddings [B * Q, L', W] and which are valid, bool [B * Q, L'], from ids [B, Q, L]."""
    encoder: Any = model.text_encoder
    ids = questions.flatten(0, 1)
    valid = ids != PAD
    x = encoder.embeddings(input_ids=ids)
    for layer in encoder.encoder.layer:
        own = layer.attention.self
        query, key, value = (_heads(part(x), own.num_attention_heads) for part in (own.query, own.key, own.value))
        if pruning is None:
            context = F.scaled_dot_product_attention(query, key, value, attn_mask=valid[:, None, None])
            x = layer.attention.output(context.transpose(1, 2).flatten(2), x)
        else:
            probabilities, context = _attention(query, key, value, valid)
            attended = layer.attention.output(context.transpose(1, 2).flatten(2), x)
            x, valid = pruning.prune(x, attended, probabilities, context, valid)
        x = _cross(layer.crossattention, x, image, image_valid)
        x = layer.feed_forward_chunk(x)
    return x, valid


def _cross(module: Any, x: torch.Tensor, source: torch.Tensor, source_valid: torch.Tensor) -> torch.Tensor:
    """Cross-attention of several rows to each row of the source, whose keys and values are computed once."""
    cross, batch = module.self, len(source)
    queries, keys, values = cross.query(x).view(batch, -1, x.shape[-1]), cross.key(source), cross.value(source)
    query, key, value = (_heads(part, cross.num_attention_heads) for part in (queries, keys, values))
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=source_valid[:, None, None])
    return module.output(context.transpose(1, 2).flatten(2).view(x.shape), x)


def answer_logits(
    model: BlipForQuestionAnswering, answers: torch.Tensor, question: torch.Tensor, question_valid: torch.Tensor
) -> torch.Tensor:
    """Logits [B, Q, A, V] of the token after each of the answers' ids [B, Q, A]."""
    decoder: Any = model.text_decoder
    x = decoder.bert.embeddings(input_ids=answers.flatten(0, 1))
    for layer in decoder.bert.encoder.layer:
        own = layer.attention.self
        query, key, value = (_heads(part(x), own.num_attention_heads) for part in (own.query, own.key, own.value))
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = layer.attention.output(context.transpose(1, 2).flatten(2), x)
        x = _cross(layer.crossattention, x, question, question_valid)
        x = layer.feed_forward_chunk(x)
    return decoder.cls(x).view(*answers.shape, -1)
