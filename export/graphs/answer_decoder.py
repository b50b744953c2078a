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

Step = tuple[torch.Tensor, torch.Tensor, list[torch.Tensor], list[torch.Tensor]]
"""logits, next_token, and keys and values of every layer's cache."""


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
    ) -> Step:
        visible = (torch.arange(past_keys[0].shape[2]) <= write_indices[:, None])[:, None, None, :]
        encoded = (torch.arange(cross_keys[0].shape[2]) < encoded_lengths[:, None])[:, None, None, :]
        layers = [operators.SlotLayer(k, v, write_indices) for k, v in zip(past_keys, past_values)]
        cross = given(cross_keys, cross_values)
        hidden = self.read(input_ids, write_indices[:, None], visible, encoded, layers, cross)
        return self.choose(hidden[:, 0], layers)

    def read(
        self,
        input_ids: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor,
        encoded: torch.Tensor,
        layers: list[operators.SlotLayer],
        cross: list[Any],
    ) -> torch.Tensor:
        """Hidden states [B,S,W] of S tokens.

        Args:
            positions: int64 [B,S].
            visible: bool [B,1,S,M], which slots each token sees.
            encoded: bool [B,1,S,E], which encoded tokens.
            layers: of the cache, written here.
            cross: layers of encoded keys and values.
        """
        caches = EncoderDecoderCache(Cache(layers=[*layers]), Cache(layers=cross))
        hidden = self.bert.embeddings(input_ids, position_ids=positions)
        for layer in self.bert.encoder.layer:
            # That there are encoder states is all that a layer still wants to know of them.
            hidden = layer(hidden, hidden, attention_mask=visible, encoder_attention_mask=encoded, cache=caches)
        return hidden

    def choose(self, last: torch.Tensor, layers: list[operators.SlotLayer]) -> Step:
        """Logits of one token a row, by its hidden state [B,W], and the cache as it was written."""
        logits = operators.tied_linear(self.transform(last), self.head.weight, self.head.bias).float()
        return logits, logits.argmax(-1), [layer.keys for layer in layers], [layer.values for layer in layers]


def graph(text_decoder: Any) -> Graph:
    return decoder_graph("answer_decoder", AnswerDecoderStep(text_decoder), text_decoder, "question")


def decoder_graph(name: str, module: torch.nn.Module, text_decoder: Any, read: str, prompts: bool = False) -> Graph:
    """The graph of a module that takes steps of BLIP's text decoder.

    Args:
        read: name of the dimension of encoded tokens.
        prompts: whether a call has several tokens a row, and `last_indices` that say which of them is chosen after.
    """
    batch, slots, encoded = (torch.export.Dim(name) for name in ("batch", "max_length", read))
    layers = len(text_decoder.bert.encoder.layer)
    attention = text_decoder.bert.encoder.layer[0].attention.self
    dtype = text_decoder.bert.embeddings.word_embeddings.weight.dtype

    def buffers(length: int) -> list[torch.Tensor]:
        shape = (2, attention.num_attention_heads, length, attention.attention_head_size)
        return [torch.zeros(shape, dtype=dtype) for _ in range(layers)]

    rows = ("write_indices", *(("last_indices",) if prompts else ()), "encoded_lengths")
    return Graph(
        name=name,
        module=module,
        example=(
            torch.ones(2, 5 if prompts else 1, dtype=torch.long),
            torch.tensor([0, 4]),
            *([torch.tensor([4, 2])] if prompts else []),
            torch.tensor([7, 6]),
            *(buffers(7), buffers(7)),
            *(buffers(24), buffers(24)),
        ),
        input_names=[
            *("input_ids", *rows),
            *cache_names(layers, CROSS),
            *cache_names(layers, "past_key_values"),
        ],
        output_names=["logits", "next_token", *cache_names(layers, "present")],
        dynamic_shapes={
            "input_ids": {0: batch, **({1: torch.export.Dim("seq")} if prompts else {})},
            **{name: {0: batch} for name in rows},
            **{name: [{0: batch, 2: encoded}] * layers for name in ("cross_keys", "cross_values")},
            **{name: [{0: batch, 2: slots}] * layers for name in ("past_keys", "past_values")},
        },
    )
