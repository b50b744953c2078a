"""text_embedding.onnx of CLIP whose text encoder prunes.

Inputs and outputs are those of `clip_text`. The encoder is causal and a text is read at the token that ends it, so that
token always stays, as the first does, and it takes the place that CLS has elsewhere: the first token sees nothing but
itself. Of the words between, every layer keeps the same fraction after its attention; the others become one token that
stands after the words and before the end, which is the one to see it.

Inside, a row is [first, end, words and pads]: its places say nothing, and `order` says who precedes whom.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export.encoder_pruning import ScoringRule, TokenEvidence
from catp.export.encoder_pruning.guidance import Guidance, LayerGuides
from catp.export.graphs import vit_modules
from catp.export.graphs.clip_text import TextEmbedding
from catp.export.graphs.text_pruning import leave_best, shares_of

FIXED = 2
"""Tokens that are never pruned: the first and the last."""

MERGED, LAST = 1 << 20, 1 << 21
"""Order of the first layer's merged token, later ones following it, and of the end: after all words of any text."""


class PrunedTextEmbedding(TextEmbedding):
    """Words, text encoder with layers that prune, and projection.

    Args:
        rule: by which words are scored.
        guidance: MADTP's, for a rule that reads it.
        thousandths: of a text's words that each layer keeps, rounded up.
    """

    def __init__(self, model: Any, rule: ScoringRule, guidance: Guidance | None, thousandths: int) -> None:
        super().__init__(model)
        self.rule, self.thousandths = rule, thousandths
        if rule.reads_guidance:
            assert guidance is not None, "checked when the checkpoint was read"
            self.guides = LayerGuides(guidance, tuple(range(len(model.text_model.encoder.layers))))

    def forward(self, text_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        places = torch.arange(text_ids.shape[1])
        embeds = self.text_model.embeddings(input_ids=text_ids, position_ids=places[None])
        end = self.end(text_ids, text_mask)
        own = (end - 1).clamp(min=0)
        ends = embeds.gather(1, end[:, None, None].expand(-1, 1, embeds.shape[2]))
        hidden = torch.cat([embeds[:, :1], ends, embeds[:, 1:]], 1)
        words = places[1:].expand(text_ids.shape[0], -1)
        order = torch.cat([torch.zeros_like(end)[:, None], torch.full_like(end, LAST)[:, None], words], 1)
        for index, layer in enumerate(self.text_model.encoder.layers):
            hidden, order, own = self._prune(index, layer, hidden, order, own)
            hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
        pooled = self.text_model.final_layer_norm(hidden[:, 1])
        return torch.nn.functional.normalize(self.projection(pooled).float(), dim=-1)

    def _prune(
        self, index: int, layer: Any, hidden: torch.Tensor, order: torch.Tensor, own: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Self-attention with its residual, [B, 2+N', W]; the order of these, int64 [B, 2+N']; words left [B]."""
        visible = torch.arange(hidden.shape[1] - FIXED) < own[:, None]
        after, evidence = self._attend(index, layer, hidden, order, visible)
        kept, prunes = shares_of(own, self.thousandths)
        left = leave_best(after[:, FIXED:], self.rule.scores(evidence), visible, own, kept, prunes)
        kept_order = torch.where(left.merged, MERGED + index, order[:, FIXED:].gather(1, left.indices))
        return (
            torch.cat([after[:, :FIXED], left.tokens], 1),
            torch.cat([order[:, :FIXED], kept_order], 1),
            left.own,
        )

    def _attend(
        self, index: int, layer: Any, hidden: torch.Tensor, order: torch.Tensor, visible: torch.Tensor
    ) -> tuple[torch.Tensor, TokenEvidence]:
        """Self-attention of [B, 2+N, W], and what the rule reads of it: the end in the place of CLS, then the words."""
        module = layer.self_attn
        queries, keys, values = vit_modules.project(module, layer.layer_norm1(hidden))
        there = torch.cat([torch.ones_like(visible[:, :1]).expand(-1, FIXED), visible], 1)
        earlier = (order[:, None, :] <= order[:, :, None]) & there[:, None, :]
        logits = ((queries * float(module.scale)) @ keys.transpose(-1, -2)).float()
        maps = torch.softmax(logits.masked_fill(~earlier[:, None], torch.finfo(torch.float32).min), -1)
        outputs = maps.to(values.dtype) @ values
        after = hidden + vit_modules.close(module, outputs.transpose(1, 2).flatten(2))
        guidance = None
        if self.rule.reads_guidance:
            guidance = self.guides(index, hidden[:, FIXED:]) * visible[:, :, None]
        seen = (maps * there[:, None, :, None])[:, :, 1:, 1:]
        return after, TokenEvidence(
            layer=index,
            layers=len(self.text_model.encoder.layers),
            tokens=after[:, FIXED:],
            keys=keys[:, :, 1:],
            maps=seen,
            cls_row=seen[:, :, 0],
            head_outputs=outputs[:, :, 1:],
            guidance=guidance,
            scorer=None,
            positions=order[:, FIXED:],
        )
