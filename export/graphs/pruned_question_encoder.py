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

from typing import Any

import torch
from transformers import BlipForQuestionAnswering

from catp.export.encoder_pruning import ScoringRule, TokenEvidence
from catp.export.encoder_pruning.rules.madtp import wanted_tokens
from catp.export.graphs import Graph, operators, question_encoder
from catp.export.graphs.blip_attention import heads
from catp.export.graphs.masks import seen_by_all
from catp.export.graphs.question_encoder import QuestionEncoder

ENCODED_LENGTHS = "encoded_lengths"
KEPT_QUESTION = "kept_question"
"""Name of the dimension S': tokens that are left of the longest question."""


class PrunedQuestionEncoder(QuestionEncoder):
    """BLIP's text encoder, each layer of which prunes.

    Args:
        rule: by which a question's tokens are scored.
        guide: `space_dict` float32 [T, W], for a rule that reads it.
        thousandths: of a row's tokens that each layer keeps, rounded up; None: as many as the temperature says.
    """

    def __init__(
        self, model: BlipForQuestionAnswering, rule: ScoringRule, guide: torch.Tensor | None, thousandths: int | None
    ) -> None:
        super().__init__(model)
        self.rule, self.thousandths = rule, thousandths
        if rule.reads_guidance:
            assert guide is not None, "checked when the checkpoint was read"
            self.register_buffer("guide", guide.float().t().contiguous())

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        image_embeds: torch.Tensor,
        lengths: torch.Tensor,
        temperature: torch.Tensor | None = None,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
        hidden = self.text_encoder.embeddings(input_ids, position_ids=torch.arange(input_ids.shape[1])[None])
        image_embeds = image_embeds.to(hidden.dtype)
        own = lengths - 1
        layers: Any = self.text_encoder.encoder.layer
        for index, layer in enumerate(layers):
            hidden, own = self._prune(index, layer, hidden, own, temperature)
            attended, _ = layer.crossattention(hidden, encoder_hidden_states=image_embeds)
            hidden = layer.feed_forward_chunk(attended)
        return *self.project(hidden), own + 1

    def _prune(
        self, index: int, layer: Any, hidden: torch.Tensor, own: torch.Tensor, temperature: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Self-attention, and the tokens that go on [B, 1+N', W], and how many after the first are its own."""
        visible = torch.arange(hidden.shape[1]) <= own[:, None]
        after, evidence = self._attend(index, layer.attention, hidden, visible)
        scores = self.rule.scores(evidence).masked_fill(~visible[:, 1:], torch.finfo(torch.float32).min)
        if self.thousandths is not None:
            kept = ((own * self.thousandths + 999) // 1000).clamp(min=1)
            prunes = kept < own - 1
        else:
            assert temperature is not None and evidence.guidance is not None
            kept = wanted_tokens(scores, evidence.guidance, temperature).expand(own.shape[0])
            prunes = kept < own
        left = torch.where(prunes, kept + 1, own)
        most = left.amax(0, keepdim=True)
        size: Any = most.item()
        torch._check(size >= 1)
        torch._check(size <= scores.shape[1])
        indices = operators.top_k(scores, most, size, largest=True)
        tokens = after[:, 1:]
        chosen = tokens.gather(1, indices[:, :, None].expand(-1, -1, tokens.shape[2]))
        # Of each row the first `kept` stay, the next place is the merged token's, and the others are pads.
        place = torch.arange(indices.shape[1])
        stays = (place < torch.where(prunes, kept, own)[:, None]).to(scores.dtype)
        gone = 1 - torch.zeros_like(scores).scatter(1, indices, stays)
        weights = torch.where(visible[:, 1:], scores * gone, torch.zeros_like(scores))
        weights = weights / (weights.sum(1, keepdim=True) + 1e-8)
        merged = torch.bmm(weights[:, None].to(tokens.dtype), tokens)
        is_merged = ((place == kept[:, None]) & prunes[:, None])[:, :, None]
        return torch.cat([after[:, :1], torch.where(is_merged, merged, chosen)], 1), left

    def _attend(
        self, index: int, attention: Any, hidden: torch.Tensor, visible: torch.Tensor
    ) -> tuple[torch.Tensor, TokenEvidence]:
        """Self-attention of [B, 1+N, W], and what the rule reads of it; pads give and are given nothing."""
        module = attention.self
        queries, keys, values = (
            heads(project(hidden), module.attention_head_size) for project in (module.query, module.key, module.value)
        )
        logits = ((queries * module.attention_head_size**-0.5) @ keys.transpose(-1, -2)).float()
        maps = torch.softmax(logits.masked_fill(~seen_by_all(visible), torch.finfo(torch.float32).min), -1)
        outputs = maps.to(values.dtype) @ values
        after = attention.output(outputs.transpose(1, 2).flatten(2), hidden)
        guidance = None
        if self.rule.reads_guidance:
            guidance = (hidden[:, 1:].float() @ self.get_buffer("guide")) * visible[:, 1:, None]
        maps = maps * visible[:, None, :, None]
        positions = torch.arange(hidden.shape[1] - 1).expand(hidden.shape[0], -1)
        return after, TokenEvidence(
            layer=index,
            layers=len(self.text_encoder.encoder.layer),
            tokens=after[:, 1:],
            keys=keys,
            maps=maps,
            cls_row=maps[:, :, 0],
            head_outputs=outputs,
            guidance=guidance,
            scorer=None,
            positions=positions,
        )


def graph(module: PrunedQuestionEncoder, model: BlipForQuestionAnswering) -> Graph:
    found = question_encoder.graph(model)
    found.module = module
    found.output_names = [*found.output_names, ENCODED_LENGTHS]
    # Each layer reads one size from a tensor, the u-th.
    found.dimension_names = {f"u{len(module.text_encoder.encoder.layer) - 1} + 1": KEPT_QUESTION}
    if module.thousandths is None:
        found.example = (*found.example, torch.ones(1))
        found.input_names = [*found.input_names, "encoder_temperature"]
        found.dynamic_shapes = {**found.dynamic_shapes, "temperature": None}
    return found
