"""caption_decoder.onnx: one graph for a caption's beginning and its steps, over a cache that is written in place.

    input_ids int64 [B,S], write_indices int64 [B], last_indices int64 [B], encoded_lengths int64 [B],
    cross_key_values.{i}.key/.value [B,H,I,d], past_key_values.{i}.key/.value [B,H,M,d]
      -> logits float32 [B,V], next_token int64 [B], present.{i}.key/.value [B,H,M,d]

As answer_decoder, which reads one token a row. A call has the S tokens that a caption begins with, or the one that was
chosen last. They are written to the cache slots from `write_indices` on, which are their positions too, and see every
slot up to their own. Rows of different length are padded on the right: `last_indices` names the token whose logits
count, and a pad's slot is overwritten before any later token can see it.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export.graphs import Graph, operators
from catp.export.graphs.answer_decoder import AnswerDecoderStep, Step, decoder_graph
from catp.export.graphs.text_decoder import given


class CaptionDecoderStep(AnswerDecoderStep):
    """A caption's beginning or its next step, by BLIP's text decoder and its head."""

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        write_indices: torch.Tensor,
        last_indices: torch.Tensor,
        encoded_lengths: torch.Tensor,
        cross_keys: list[torch.Tensor],
        cross_values: list[torch.Tensor],
        past_keys: list[torch.Tensor],
        past_values: list[torch.Tensor],
    ) -> Step:
        length = input_ids.shape[1]
        written = write_indices[:, None] + torch.arange(length)
        visible = torch.arange(past_keys[0].shape[2]) <= written[:, None, :, None]  # bool [B, 1, S, M]
        encoded = torch.arange(cross_keys[0].shape[2]) < encoded_lengths[:, None]
        encoded = encoded[:, None, None, :].expand(-1, -1, length, -1)
        layers = [operators.SlotLayer(k, v, write_indices) for k, v in zip(past_keys, past_values)]
        hidden = self.read(input_ids, written, visible, encoded, layers, given(cross_keys, cross_values))
        last = hidden.gather(1, last_indices[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]
        return self.choose(last, layers)


def graph(text_decoder: Any) -> Graph:
    module = CaptionDecoderStep(text_decoder)
    return decoder_graph("caption_decoder", module, text_decoder, "image_tokens", prompts=True)
