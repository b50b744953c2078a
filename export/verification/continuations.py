"""Greedy continuations after pruned image tokens, by Hugging Face's language models alone; one function for each kind.

They say what positions mean without a word of the graphs' code: `original` keeps the distances of the unpruned
sequence, `compact` is the short sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, EncoderDecoderCache

from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.bundle.manifest import Positions


@dataclass(frozen=True)
class Greedy:
    """A greedy continuation."""

    token_ids: list[int]
    logits: np.ndarray  # float32 [steps, V]
    encoded: list[np.ndarray] | None = None  # keys, then values [H, L, d] that each decoder layer reads of the encoder


Continue = Callable[[Any, torch.Tensor, torch.Tensor, Positions, torch.Tensor, tuple[int, ...], int], Greedy]
"""lm, query_embeds [N, D], kept int64 [k], positions, words [S, D], eos ids, max_new_tokens."""


def generated(output: Any) -> Greedy:
    """One row's tokens and logits of `generate(return_dict_in_generate=True, output_logits=True)`.

    There are as many logits as new tokens; what stands before these (prompt, decoder start) differs by version and
    model.
    """
    return Greedy(output.sequences[0, -len(output.logits) :].tolist(), torch.cat(output.logits).float().numpy())


def cache_of(kind: LanguageKind) -> dict[str, Any]:
    """Arguments of `generate()`: the cache that it makes for an encoder-decoder model has a layer for every layer of
    the encoder, and fails where the decoder has more.
    """
    if kind == "decoder-only":
        return {}
    return {"cache": EncoderDecoderCache(DynamicCache(), DynamicCache())}


def continue_decoder_only(
    lm: Any,
    query_embeds: torch.Tensor,
    kept: torch.Tensor,
    positions: Positions,
    words: torch.Tensor,
    eos: tuple[int, ...],
    max_new_tokens: int,
) -> Greedy:
    """The kept tokens and the prompt at explicit position ids, step by step with Hugging Face's cache."""
    original = positions == "original"
    image_positions, position = (kept, len(query_embeds)) if original else (torch.arange(len(kept)), len(kept))
    text_positions = torch.arange(position, position + len(words))
    cache = DynamicCache(config=lm.config)
    output = lm(
        inputs_embeds=torch.cat([query_embeds[kept], words])[None],
        position_ids=torch.cat([image_positions, text_positions])[None],
        cache=cache,
        use_cache=True,
    )
    tokens: list[int] = []
    logits: list[torch.Tensor] = []
    position += len(words)
    while True:
        logits.append(output.logits[0, -1])
        tokens.append(int(logits[-1].argmax()))
        if tokens[-1] in eos or len(tokens) == max_new_tokens:
            return Greedy(tokens, torch.stack(logits).float().numpy())
        output = lm(
            input_ids=torch.tensor([tokens[-1:]]),
            position_ids=torch.tensor([[position]]),
            cache=cache,
            use_cache=True,
        )
        position += 1


def continue_encoder_decoder(
    lm: Any,
    query_embeds: torch.Tensor,
    kept: torch.Tensor,
    positions: Positions,
    words: torch.Tensor,
    eos: tuple[int, ...],
    max_new_tokens: int,
) -> Greedy:
    """`generate()` of the whole sequence with dropped tokens masked (original), or of one without them (compact)."""
    if positions == "original":
        embeds = torch.cat([query_embeds, words])
        mask = torch.ones(len(embeds), dtype=torch.long)
        mask[: len(query_embeds)] = 0
        mask[kept] = 1
    else:
        embeds = torch.cat([query_embeds[kept], words])
        mask = torch.ones(len(embeds), dtype=torch.long)
    output = lm.generate(
        inputs_embeds=embeds[None],
        attention_mask=mask[None],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        return_dict_in_generate=True,
        output_logits=True,
        **cache_of("encoder-decoder"),
    )
    layers = output.cache.cross_attention_cache.layers
    tensors = [layer.keys for layer in layers] + [layer.values for layer in layers]
    greedy = generated(output)
    return Greedy(greedy.token_ids, greedy.logits, [tensor[0][:, mask.bool()].numpy() for tensor in tensors])


CONTINUE: dict[LanguageKind, Continue] = {
    "decoder-only": continue_decoder_only,
    "encoder-decoder": continue_encoder_decoder,
}
