"""Text encoders that score texts, with layers that prune tokens of the text: of BLIP's retrieval, NLVR2, and CLIP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling

from catp.export.encoder_pruning import make_rule
from catp.export.encoder_pruning.guidance import Guidance
from catp.export.graphs import Graph, pruned_clip_text, pruned_texts
from catp.export.graphs.text_pruning import PrunedTextLayers
from catp.export.language_models.contrastive import Contrastive
from catp.export.language_models.matching import Matching
from catp.export.language_models.pruned_text_reference import encode, encode_causally
from catp.export.language_models.two_images import TwoImages
from catp.runtime.bundle.encoder_pruning import QuestionPruningSpec


class _Pruned:
    """A spec in the schedule form, and what guides its rule."""

    def __init__(self, spec: QuestionPruningSpec, guidance: Guidance | None) -> None:
        self.spec, self.guidance = spec, guidance

    def layers(self, text_encoder: Any) -> PrunedTextLayers:
        return PrunedTextLayers(text_encoder, make_rule(self.spec.rule), self.guidance, self.spec.thousandths)


class PrunedContrastive(_Pruned, Contrastive):
    """As without pruning: the text graph takes and gives the same."""

    def graphs(self, lm: Any) -> Iterator[Graph]:
        image, text = super().graphs(lm)
        assert self.spec.thousandths is not None, "planned as a fraction"
        text.module = pruned_clip_text.PrunedTextEmbedding(
            lm, make_rule(self.spec.rule), self.guidance, self.spec.thousandths
        )
        yield from (image, text)

    @contextmanager
    def standing_in(self, lm: Any) -> Iterator[None]:
        def forward(input_ids: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
            return BaseModelOutputWithPooling(
                pooler_output=encode_causally(lm.text_model, input_ids, self.spec, self.guidance)
            )

        with _in_place(lm.text_model, "forward", forward):
            yield


class PrunedMatching(_Pruned, Matching):
    """As without pruning; a text is pruned where it is read alone, and where it reads the image."""

    def graphs(self, lm: Any) -> Iterator[Graph]:
        image, text, match = super().graphs(lm)
        text.module = pruned_texts.PrunedTextEmbedding(self.layers(lm.text_encoder), lm.text_proj)
        match.module = pruned_texts.PrunedImageTextMatching(self.layers(lm.text_encoder), lm.itm_head)
        yield from (image, text, match)

    @contextmanager
    def standing_in(self, lm: Any) -> Iterator[None]:
        def forward(
            input_ids: torch.Tensor, encoder_hidden_states: torch.Tensor | None = None, **_: Any
        ) -> BaseModelOutputWithPooling:
            def read(layer: Any, tokens: torch.Tensor) -> torch.Tensor:
                if encoder_hidden_states is None:
                    return tokens
                return layer.crossattention(tokens, encoder_hidden_states=encoder_hidden_states)[0]

            return BaseModelOutputWithPooling(
                last_hidden_state=encode(lm.text_encoder, input_ids, read, self.spec, self.guidance)
            )

        with _in_place(lm.text_encoder, "forward", forward):
            yield


class PrunedTwoImages(_Pruned, TwoImages):
    """As without pruning."""

    def graphs(self, lm: Any) -> Iterator[Graph]:
        (statement,) = super().graphs(lm)
        statement.module = pruned_texts.PrunedStatementEncoder(self.layers(lm.text_encoder), lm.cls_head)
        yield statement

    @contextmanager
    def standing_in(self, lm: Any) -> Iterator[None]:
        def judge(
            input_ids: torch.Tensor, attention_mask: torch.Tensor, first: torch.Tensor, second: torch.Tensor
        ) -> torch.Tensor:
            def read(layer: Any, tokens: torch.Tensor) -> torch.Tensor:
                return layer.crossattention(tokens, first, second)

            hidden = encode(lm.text_encoder, input_ids, read, self.spec, self.guidance)
            return lm.cls_head(hidden[:, 0])

        with _in_place(lm, "judge", judge):
            yield


@contextmanager
def _in_place(module: Any, name: str, function: Callable[..., Any]) -> Iterator[None]:
    """While it lasts, the method of that name is another function."""
    setattr(module, name, function)
    try:
        yield
    finally:
        delattr(module, name)


PRUNED: dict[str, type[PrunedContrastive | PrunedMatching | PrunedTwoImages]] = {
    pruned.kind: pruned for pruned in (PrunedContrastive, PrunedMatching, PrunedTwoImages)
}
"""By kind of language model."""
