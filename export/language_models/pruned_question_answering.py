"""BLIP's text encoder with layers that prune tokens of the question, and the decoder that writes the answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import BlipForQuestionAnswering

from catp.export.encoder_pruning import make_rule
from catp.export.encoder_pruning.guidance import Guidance
from catp.export.graphs import Graph, answer_decoder
from catp.export.graphs.pruned_question_encoder import KEPT_QUESTION, PrunedQuestionEncoder, graph
from catp.export.language_models.pruned_text_reference import encode
from catp.export.language_models.question_answering import QuestionAnswering
from catp.runtime.bundle.encoder_pruning import QuestionPruningSpec


class PrunedQuestionAnswering(QuestionAnswering):
    """As without pruning; the question encoder also says how many tokens of each question are left."""

    def __init__(self, spec: QuestionPruningSpec, guidance: Guidance | None) -> None:
        self.spec, self.guidance = spec, guidance

    def graphs(self, lm: BlipForQuestionAnswering) -> Iterator[Graph]:
        module = PrunedQuestionEncoder(lm, make_rule(self.spec.rule), self.guidance, self.spec.thousandths)
        yield graph(module, lm)
        decoder = answer_decoder.graph(lm.text_decoder)
        decoder.dimension_names = {"question": KEPT_QUESTION}
        yield decoder

    @contextmanager
    def standing_in(self, lm: BlipForQuestionAnswering) -> Iterator[None]:
        text_encoder: Any = lm.text_encoder

        def forward(input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, ...]:
            def read(layer: Any, tokens: torch.Tensor) -> torch.Tensor:
                return layer.crossattention(tokens, encoder_hidden_states=encoder_hidden_states)[0]

            return (encode(text_encoder, input_ids, read, self.spec, self.guidance),)

        text_encoder.forward = forward
        try:
            yield
        finally:
            del text_encoder.forward
