"""question_encoder.onnx of a text encoder that prunes tokens of the question.

    schedule form: input_ids int64 [B,S], image_embeds [B,I,Dv], lengths int64 [B]
    dynamic form:  the same, and encoder_temperature float32 [1]
      -> cross_key_values.{i}.key/.value [B,H,S',d], one pair for every decoder layer, encoded_lengths int64 [B]

Every layer prunes, after its self-attention and before it reads the image. In the schedule form each keeps the same
fraction of a row's own tokens, pads not counted, so a row keeps what it would keep alone; in the dynamic form the
graph counts, for questions of one length. The first token always stays. `encoded_lengths` says how many of the S'
tokens are a row's own.
"""

from __future__ import annotations

import torch
from transformers import BlipForQuestionAnswering

from catp.export.encoder_pruning import ScoringRule
from catp.export.encoder_pruning.guidance import Guidance
from catp.export.graphs import Graph, question_encoder
from catp.export.graphs.question_encoder import QuestionEncoder
from catp.export.graphs.text_pruning import PrunedTextLayers

ENCODED_LENGTHS = "encoded_lengths"
KEPT_QUESTION = "kept_question"
"""Name of the dimension S': tokens that are left of the longest question."""


class PrunedQuestionEncoder(QuestionEncoder):
    """BLIP's text encoder, each layer of which prunes; for its arguments see `PrunedTextLayers`."""

    def __init__(
        self,
        model: BlipForQuestionAnswering,
        rule: ScoringRule,
        guidance: Guidance | None,
        thousandths: int | None,
    ) -> None:
        super().__init__(model)
        self.layers = PrunedTextLayers(model.text_encoder, rule, guidance, thousandths)

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        image_embeds: torch.Tensor,
        lengths: torch.Tensor,
        temperature: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        hidden = self.layers.embed(input_ids)
        image_embeds = image_embeds.to(hidden.dtype)
        own = lengths - 1
        for index, layer in enumerate(self.text_encoder.encoder.layer):
            hidden, own = self.layers.attend(index, hidden, own, temperature)
            attended, _ = layer.crossattention(hidden, encoder_hidden_states=image_embeds)
            hidden = layer.feed_forward_chunk(attended)
        return *self.project(hidden), own + 1


def graph(module: PrunedQuestionEncoder, model: BlipForQuestionAnswering) -> Graph:
    found = question_encoder.graph(model)
    found.module = module
    found.output_names = [*found.output_names, ENCODED_LENGTHS]
    # Each layer reads one size from a tensor, the u-th.
    found.dimension_names = {f"u{len(module.text_encoder.encoder.layer) - 1} + 1": KEPT_QUESTION}
    if module.layers.thousandths is None:
        found.example = (*found.example, torch.ones(1))
        found.input_names = [*found.input_names, "encoder_temperature"]
        found.dynamic_shapes = {**found.dynamic_shapes, "temperature": None}
    return found
