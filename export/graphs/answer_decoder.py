"""answer_decoder.onnx: one token per row, over a cache that is written in place and cross-attention given from outside.

    input_ids int64 [B,1], write_indices int64 [B], encoded_lengths int64 [B], cross_key_values.{i}.key/.value
    [B,H,E,d], past_key_values.{i}.key/.value [B,H,M,d]
      -> logits float32 [B,V], next_token int64 [B], present.{i}.key/.value [B,H,M,d]

As text_decoder, with BLIP's decoder: a token's position is its cache slot, it sees every slot up to its own, and the
first `encoded_lengths` of the E tokens of the question, not pads.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, EncoderDecoderCache

import catp.export.graphs.blip_attention  # noqa: F401  BLIP's attention becomes one operator
from catp.export.graphs import Graph, operators
from catp.export.graphs.language_model import cache_names
from catp.export.graphs.text_decoder import given
from catp.export.graphs.text_encoder import CROSS


class AnswerDecoderStep(torch.nn.Module):
    """One step of BLIP's text decoder and its head."""

    def __init__(self, text_decoder: Any) -> None:
        super().__init__()
        self.bert = text_decoder.bert
        self.transform = text_decoder.cls.predictions.transform
        self.head = text_decoder.cls.predictions.decoder

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
        visible = (torch.arange(past_keys[0].shape[2]) <= write_indices[:, None])[:, None, None, :]
        encoded = (torch.arange(cross_keys[0].shape[2]) < encoded_lengths[:, None])[:, None, None, :]
        layers = [operators.SlotLayer(k, v, write_indices) for k, v in zip(past_keys, past_values)]
        caches = EncoderDecoderCache(Cache(layers=[*layers]), Cache(layers=given(cross_keys, cross_values)))
        hidden = self.bert.embeddings(input_ids, position_ids=write_indices[:, None])
        for layer in self.bert.encoder.layer:
            # That there are encoder states is all that a layer still wants to know of them.
            hidden = layer(hidden, hidden, attention_mask=visible, encoder_attention_mask=encoded, cache=caches)
        last = self.transform(hidden[:, 0])
        logits = operators.tied_linear(last, self.head.weight, self.head.bias).float()
        return logits, logits.argmax(-1), [layer.keys for layer in layers], [layer.values for layer in layers]


def graph(text_decoder: Any) -> Graph:
    batch, slots, question = (torch.export.Dim(name) for name in ("batch", "max_length", "question"))
    layers = len(text_decoder.bert.encoder.layer)
    attention = text_decoder.bert.encoder.layer[0].attention.self
    dtype = text_decoder.bert.embeddings.word_embeddings.weight.dtype

    def buffers(length: int) -> list[torch.Tensor]:
        shape = (2, attention.num_attention_heads, length, attention.attention_head_size)
        return [torch.zeros(shape, dtype=dtype) for _ in range(layers)]

    return Graph(
        name="answer_decoder",
        module=AnswerDecoderStep(text_decoder),
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
            **{name: [{0: batch, 2: question}] * layers for name in ("cross_keys", "cross_values")},
            **{name: [{0: batch, 2: slots}] * layers for name in ("past_keys", "past_values")},
        },
    )
