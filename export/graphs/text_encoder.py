"""text_encoder.onnx: kept tokens and prompt to the keys and values that the decoder's cross-attention reads.

    input_ids int64 [B,S], prefix_embeds [B,K,D], prefix_positions int64 [B,K], position_start int64 [B],
    lengths int64 [B]
      -> cross_key_values.{i}.key/.value [B,H,K+S,d], one pair for every decoder layer

They are computed once per answer, here, because they don't change while it grows. Prompts of different length are
padded on the right; `lengths` counts each row's own tokens, and nothing sees a pad. Positions decide the relative
position bias alone: with `prefix_positions` as before pruning and `position_start` after all N tokens, every token that
is kept and every word of the prompt has the distance to every other that it had in training.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export.graphs import Graph, interface_dtype
from catp.export.graphs.language_model import cache_names
from catp.export.graphs.t5_bias import DistanceBias

CROSS = "cross_key_values"


class TextEncoder(torch.nn.Module):
    """T5's encoder, and the projections of its result into every decoder layer's keys and values."""

    def __init__(self, language_model: Any) -> None:
        super().__init__()
        self.embedding = language_model.get_input_embeddings()
        self.encoder = language_model.encoder
        self.bias = DistanceBias(self.encoder.block[0].layer[0].SelfAttention, bidirectional=True)
        readers = [block.layer[1].EncDecAttention for block in language_model.decoder.block]
        self.key_projections = torch.nn.ModuleList(reader.k for reader in readers)
        self.value_projections = torch.nn.ModuleList(reader.v for reader in readers)
        self.width = language_model.config.d_kv

    def forward(
        self,
        input_ids: torch.Tensor,
        prefix_embeds: torch.Tensor,
        prefix_positions: torch.Tensor,
        position_start: torch.Tensor,
        lengths: torch.Tensor,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        words = self.embedding(input_ids)
        hidden = torch.cat([prefix_embeds.to(words.dtype), words], 1)
        text_positions = position_start[:, None] + torch.arange(input_ids.shape[1])
        positions = torch.cat([prefix_positions, text_positions], 1)
        visible = torch.arange(hidden.shape[1]) < (prefix_embeds.shape[1] + lengths)[:, None]
        bias = self.bias(positions[:, None, :] - positions[:, :, None], visible[:, None, None, :])
        for block in self.encoder.block:
            hidden, _, _ = block(hidden, position_bias=bias)
        hidden = self.encoder.final_layer_norm(hidden)
        keys = [self._heads(project, hidden) for project in self.key_projections]
        values = [self._heads(project, hidden) for project in self.value_projections]
        return keys, values

    def _heads(self, project: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """[B,L,D] to [B,H,L,d]."""
        return project(hidden).view(*hidden.shape[:2], -1, self.width).transpose(1, 2)


def graph(language_model: Any) -> Graph:
    batch, seq, kept = (torch.export.Dim(name) for name in ("batch", "seq", "num_kept"))
    embedding = language_model.get_input_embeddings().weight
    return Graph(
        name="text_encoder",
        module=TextEncoder(language_model),
        example=(
            torch.ones(2, 5, dtype=torch.long),
            torch.zeros(2, 3, embedding.shape[1], dtype=interface_dtype(embedding.dtype)),
            torch.tensor([[0, 2, 5]] * 2),
            torch.tensor([6, 9]),
            torch.tensor([5, 4]),
        ),
        input_names=["input_ids", "prefix_embeds", "prefix_positions", "position_start", "lengths"],
        output_names=cache_names(len(language_model.decoder.block), CROSS),
        dynamic_shapes={
            "input_ids": {0: batch, 1: seq},
            "prefix_embeds": {0: batch, 1: kept},
            "prefix_positions": {0: batch, 1: kept},
            "position_start": {0: batch},
            "lengths": {0: batch},
        },
        dimension_names={"num_kept + seq": "encoded"},
    )
