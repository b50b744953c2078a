"""image_keys.onnx: image tokens to the keys and values that the cross-attention of BLIP's text decoder reads.

    image_embeds [B,I,Dv] -> cross_key_values.{i}.key/.value [B,H,I,d], one pair for every decoder layer

They are computed once per picture, here, because they don't change while a caption grows. How many image tokens there
are is free: an encoder may have pruned some.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export.graphs import Graph, interface_dtype
from catp.export.graphs.blip_attention import heads
from catp.export.graphs.language_model import cache_names
from catp.export.graphs.text_encoder import CROSS


class CrossProjections(torch.nn.Module):
    """The projections by which every layer of a text decoder makes keys and values of what it reads."""

    def __init__(self, text_decoder: Any) -> None:
        super().__init__()
        readers: list[Any] = [layer.crossattention.self for layer in text_decoder.bert.encoder.layer]
        self.key_projections = torch.nn.ModuleList(reader.key for reader in readers)
        self.value_projections = torch.nn.ModuleList(reader.value for reader in readers)
        self.width = readers[0].attention_head_size

    def project(self, read: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Keys and values [B,H,L,d] of each layer, of tokens [B,L,D]."""
        keys = [heads(project(read), self.width) for project in self.key_projections]
        values = [heads(project(read), self.width) for project in self.value_projections]
        return keys, values


class ImageKeys(CrossProjections):
    """The projections of image tokens."""

    def forward(self, image_embeds: torch.Tensor) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        return self.project(image_embeds.to(next(self.key_projections.parameters()).dtype))


def graph(text_decoder: Any) -> Graph:
    module = ImageKeys(text_decoder)
    weight = next(module.key_projections.parameters())
    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("image_tokens")
    return Graph(
        name="image_keys",
        module=module,
        example=(torch.zeros(2, 7, weight.shape[1], dtype=interface_dtype(weight.dtype)),),
        input_names=["image_embeds"],
        output_names=cache_names(len(module.key_projections), CROSS),
        dynamic_shapes={"image_embeds": {0: batch, 1: tokens}},
    )
