"""language_model.onnx: one graph for prefill and decode, over a cache that is written in place.

    input_ids int64 [B,S], prefix_embeds [B,K,D], prefix_positions int64 [B,K], position_start int64 [B],
    write_indices int64 [B], last_indices int64 [B], past_key_values.{i}.key/.value [B,H,M,d]
      -> logits float32 [B,V], next_token int64 [B], present.{i}.key/.value [B,H,M,d]

The tokens of a step are the K prefix tokens followed by the S text tokens (K = 0 and S = 1 in decode). They
are written to the cache slots from `write_indices` on, and see every slot up to their own. Positions are
separate from slots: `prefix_positions` as given, text from `position_start` on. Rows of different length are
padded on the right: `last_indices` names the token whose logits count, and a pad's slot is overwritten before
any later token can see it, so there is no attention-mask input.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from catp.export.graphs import Graph, interface_dtype, operators


class LanguageModelStep(torch.nn.Module):
    """One prefill or decode step of a decoder-only language model."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.embedding = language_model.get_input_embeddings()
        self.decoder = language_model.base_model
        self.head = language_model.get_output_embeddings()

    def forward(
        self,
        input_ids: torch.Tensor,
        prefix_embeds: torch.Tensor,
        prefix_positions: torch.Tensor,
        position_start: torch.Tensor,
        write_indices: torch.Tensor,
        last_indices: torch.Tensor,
        past_keys: list[torch.Tensor],
        past_values: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        words = self.embedding(input_ids)
        embeds = torch.cat([prefix_embeds.to(words.dtype), words], 1)
        text_positions = position_start[:, None] + torch.arange(input_ids.shape[1])
        written = write_indices[:, None] + torch.arange(embeds.shape[1])
        mask = torch.arange(past_keys[0].shape[2]) <= written[:, None, :, None]  # bool [B, 1, K+S, M]
        layers = [operators.SlotLayer(k, v, write_indices) for k, v in zip(past_keys, past_values)]
        hidden = self.decoder(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=torch.cat([prefix_positions, text_positions], 1),
            cache=Cache(layers=[*layers]),
            use_cache=True,
        ).last_hidden_state
        # Only the last real token of each row goes through the head: [B, V], never [B, S, V].
        last = hidden.gather(1, last_indices[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]
        logits = operators.tied_linear(last, self.head.weight, self.head.bias).float()
        return logits, logits.argmax(-1), [layer.keys for layer in layers], [layer.values for layer in layers]


def cache_names(layers: int, prefix: str) -> list[str]:
    """Names of the cache tensors in the order forward takes and returns them: all keys, then all values."""
    return [f"{prefix}.{i}.{kind}" for kind in ("key", "value") for i in range(layers)]


def graph(language_model: Any, cache_shapes: list[tuple[int, int]]) -> Graph:
    """Args: `cache_shapes`: (key-value heads, head width) of every layer."""
    batch, seq, kept, slots = (torch.export.Dim(n) for n in ("batch", "seq", "num_kept", "max_length"))
    embedding = language_model.get_input_embeddings().weight
    cache = [torch.zeros(2, heads, 24, width, dtype=embedding.dtype) for heads, width in cache_shapes]
    example = (
        torch.ones(2, 5, dtype=torch.long),
        torch.zeros(2, 3, embedding.shape[1], dtype=interface_dtype(embedding.dtype)),
        torch.tensor([[0, 2, 5]] * 2),
        torch.tensor([6, 9]),
        torch.tensor([0, 4]),
        torch.tensor([7, 6]),
        cache,
        [c.clone() for c in cache],
    )
    rows = ("position_start", "write_indices", "last_indices")
    layers = len(cache_shapes)
    return Graph(
        name="language_model",
        module=LanguageModelStep(language_model),
        example=example,
        input_names=["input_ids", "prefix_embeds", "prefix_positions", *rows, *cache_names(layers, "past_key_values")],
        output_names=["logits", "next_token", *cache_names(layers, "present")],
        dynamic_shapes={
            "input_ids": {0: batch, 1: seq},
            "prefix_embeds": {0: batch, 1: kept},
            "prefix_positions": {0: batch, 1: kept},
            **{name: {0: batch} for name in rows},
            "past_keys": [{0: batch, 2: slots}] * layers,
            "past_values": [{0: batch, 2: slots}] * layers,
        },
    )
