"""text_decoder.onnx: one token per row, over a cache that is written in place and cross-attention given from outside.

    input_ids int64 [B,1], write_indices int64 [B], encoded_lengths int64 [B], cross_key_values.{i}.key/.value
    [B,H,E,d], past_key_values.{i}.key/.value [B,H,M,d]
      -> logits float32 [B,V], next_token int64 [B], present.{i}.key/.value [B,H,M,d]

The first token is the model's decoder start token, so there is no prefill of its own. A token's position is its cache
slot. It sees every slot up to its own, and the first `encoded_lengths` of the E encoded tokens: kept ones and prompt,
not pads.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer, EncoderDecoderCache

from catp.export.graphs import Graph, operators
from catp.export.graphs.language_model import cache_names
from catp.export.graphs.t5_bias import DistanceBias
from catp.export.graphs.text_encoder import CROSS


class TextDecoderStep(torch.nn.Module):
    """One step of T5's decoder and the language model head."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.decoder = language_model.decoder
        self.bias = DistanceBias(self.decoder.block[0].layer[0].SelfAttention, bidirectional=False)
        self.head = language_model.get_output_embeddings()
        self.scale = language_model.model_dim**-0.5 if language_model.config.scale_decoder_outputs else 1.0

    def forward(
        self,
        input_ids: torch.Tensor,
        write_indices: torch.Tensor,
        encoded_lengths: torch.Tensor,
        cross_keys: list[torch.Tensor],
        cross_values: list[torch.Tensor],
        past_keys: list[torch.Tensor],
        past_values: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        distances = (torch.arange(past_keys[0].shape[2]) - write_indices[:, None])[:, None, :]  # [B,1,M]
        bias = self.bias(distances, (distances <= 0)[:, None])
        encoded = (torch.arange(cross_keys[0].shape[2]) < encoded_lengths[:, None])[:, None, None, :]
        layers = [operators.SlotLayer(k, v, write_indices) for k, v in zip(past_keys, past_values)]
        caches = EncoderDecoderCache(Cache(layers=[*layers]), Cache(layers=given(cross_keys, cross_values)))
        caches.is_updated = dict.fromkeys(range(len(layers)), True)
        hidden = self.decoder.embed_tokens(input_ids)
        for block in self.decoder.block:
            # That there are encoder states is all that a block still wants to know of them. The place for the bias of
            # the cross-attention, which T5 has none of, takes its mask.
            hidden, _, _ = block(
                hidden,
                position_bias=bias,
                encoder_hidden_states=hidden,
                encoder_decoder_position_bias=encoded,
                cache=caches,
            )
        last = self.decoder.final_layer_norm(hidden)[:, 0] * self.scale
        logits = operators.tied_linear(last, self.head.weight, self.head.bias).float()
        return logits, logits.argmax(-1), [layer.keys for layer in layers], [layer.values for layer in layers]


def given(keys: list[torch.Tensor], values: list[torch.Tensor]) -> list[Any]:
    """Layers of a cache that is only read."""
    layers = [DynamicLayer() for _ in keys]
    for layer, key, value in zip(layers, keys, values):
        layer.keys, layer.values, layer.is_initialized = key, value, True
    return layers


def graph(language_model: Any) -> Graph:
    config = language_model.config
    batch, slots, encoded = (torch.export.Dim(name) for name in ("batch", "max_length", "encoded"))
    layers = len(language_model.decoder.block)
    embedding = language_model.decoder.embed_tokens.weight

    def buffers(length: int) -> list[torch.Tensor]:
        shape = (2, config.num_heads, length, config.d_kv)
        return [torch.zeros(shape, dtype=embedding.dtype) for _ in range(layers)]

    return Graph(
        name="text_decoder",
        module=TextDecoderStep(language_model),
        example=(
            torch.ones(2, 1, dtype=torch.long),
            torch.tensor([0, 4]),
            torch.tensor([7, 6]),
            *(buffers(7), buffers(7)),
            *(buffers(24), buffers(24)),
        ),
        input_names=[
            *("input_ids", "write_indices", "encoded_lengths"),
            *cache_names(layers, CROSS),
            *cache_names(layers, "past_key_values"),
        ],
        output_names=["logits", "next_token", *cache_names(layers, "present")],
        dynamic_shapes={
            **{name: {0: batch} for name in ("input_ids", "write_indices", "encoded_lengths")},
            **{name: [{0: batch, 2: encoded}] * layers for name in ("cross_keys", "cross_values")},
            **{name: [{0: batch, 2: slots}] * layers for name in ("past_keys", "past_values")},
        },
    )
