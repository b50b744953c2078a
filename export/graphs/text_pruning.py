"""Layers of a text encoder that prune a text's tokens, which its graphs share.

A row keeps what it would keep alone, pads not counted: of its own tokens each layer leaves the best ones, and one more
that the others become.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from catp.export.encoder_pruning import ScoringRule, TokenEvidence
from catp.export.encoder_pruning.guidance import Guidance, LayerGuides
from catp.export.encoder_pruning.rules.madtp import wanted_tokens
from catp.export.graphs import blip_attention, operators
from catp.export.graphs.masks import seen_by_all


@dataclass(frozen=True)
class Left:
    """The tokens that a layer leaves of B rows of N."""

    tokens: torch.Tensor  # [B, N', W], a row's own first, and the merged one last of these
    own: torch.Tensor  # int64 [B]: how many are a row's own
    indices: torch.Tensor  # int64 [B, N']: which of the N each one was
    merged: torch.Tensor  # bool [B, N']


def shares_of(own: torch.Tensor, thousandths: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that a fraction keeps of a row's own, rounded up, int64 [B]; whether it leaves any out, bool [B]."""
    kept = ((own * thousandths + 999) // 1000).clamp(min=1)
    return kept, kept < own - 1


def leave_best(
    tokens: torch.Tensor,
    scores: torch.Tensor,
    visible: torch.Tensor,
    own: torch.Tensor,
    kept: torch.Tensor,
    prunes: torch.Tensor,
) -> Left:
    """The best tokens of each row, best first, and the sum of (S_j / sum of dropped S) x_j of the others.

    Args:
        tokens: [B, N, W].
        scores: float32 [B, N].
        visible: bool [B, N], whether a token is the row's own and no pad.
        own: int64 [B], how many are.
        kept: int64 [B], how many are kept where the row prunes.
        prunes: bool [B].
    """
    scores = scores.masked_fill(~visible, torch.finfo(torch.float32).min)
    left = torch.where(prunes, kept + 1, own)
    most = left.amax(0, keepdim=True).clamp(min=1)  # a batch of texts without words has pads alone
    size: Any = most.item()
    torch._check(size >= 1)
    torch._check(size <= scores.shape[1])
    indices = operators.top_k(scores, most, size, largest=True)
    chosen = tokens.gather(1, indices[:, :, None].expand(-1, -1, tokens.shape[2]))
    # Of each row the first `kept` stay, the next place is the merged token's, and the others are pads.
    place = torch.arange(indices.shape[1])
    stays = (place < torch.where(prunes, kept, own)[:, None]).to(scores.dtype)
    gone = 1 - torch.zeros_like(scores).scatter(1, indices, stays)
    weights = torch.where(visible, scores * gone, torch.zeros_like(scores))
    weights = weights / (weights.sum(1, keepdim=True) + 1e-8)
    merged = torch.bmm(weights[:, None].to(tokens.dtype), tokens)
    is_merged = (place == kept[:, None]) & prunes[:, None]
    return Left(torch.where(is_merged[:, :, None], merged, chosen), left, indices, is_merged)


class PrunedTextLayers(torch.nn.Module):
    """BLIP's text encoder, each layer of which prunes, after its self-attention and before it reads an image.

    The first token always stays.

    Args:
        text_encoder: Hugging Face's.
        rule: by which a text's tokens are scored.
        guidance: MADTP's, for a rule that reads it.
        thousandths: of a row's tokens that each layer keeps, rounded up; None: as many as the temperature says, of
            texts of one length.
    """

    def __init__(
        self, text_encoder: Any, rule: ScoringRule, guidance: Guidance | None, thousandths: int | None
    ) -> None:
        super().__init__()
        self.text_encoder, self.rule, self.thousandths = text_encoder, rule, thousandths
        if rule.reads_guidance:
            assert guidance is not None, "checked when the checkpoint was read"
            self.guides = LayerGuides(guidance, tuple(range(len(text_encoder.encoder.layer))))

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[B, S, W] of int64 [B, S]."""
        return self.text_encoder.embeddings(ids, position_ids=torch.arange(ids.shape[1])[None])

    def attend(
        self, index: int, hidden: torch.Tensor, own: torch.Tensor, temperature: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Self-attention of a layer, and the tokens that go on [B, 1+N', W], and how many after the first are its own.

        Args:
            hidden: [B, 1+N, W].
            own: int64 [B], of a row's tokens after the first.
        """
        visible = torch.arange(hidden.shape[1]) <= own[:, None]
        after, evidence = self._evidence(index, hidden, visible)
        scores = self.rule.scores(evidence)
        if self.thousandths is not None:
            kept, prunes = shares_of(own, self.thousandths)
        else:
            assert temperature is not None and evidence.guidance is not None
            scores = scores.masked_fill(~visible[:, 1:], torch.finfo(torch.float32).min)
            kept = wanted_tokens(scores, evidence.guidance, temperature).expand(own.shape[0])
            prunes = kept < own
        left = leave_best(after[:, 1:], scores, visible[:, 1:], own, kept, prunes)
        return torch.cat([after[:, :1], left.tokens], 1), left.own

    def _evidence(self, index: int, hidden: torch.Tensor, visible: torch.Tensor) -> tuple[torch.Tensor, TokenEvidence]:
        """Self-attention of [B, 1+N, W], and what the rule reads of it; pads give and are given nothing."""
        attention = self.text_encoder.encoder.layer[index].attention
        module = attention.self
        queries, keys, values = (
            blip_attention.heads(project(hidden), module.attention_head_size)
            for project in (module.query, module.key, module.value)
        )
        logits = ((queries * module.attention_head_size**-0.5) @ keys.transpose(-1, -2)).float()
        maps = torch.softmax(logits.masked_fill(~seen_by_all(visible), torch.finfo(torch.float32).min), -1)
        outputs = maps.to(values.dtype) @ values
        after = attention.output(outputs.transpose(1, 2).flatten(2), hidden)
        guidance = None
        if self.rule.reads_guidance:
            guidance = self.guides(index, hidden[:, 1:]) * visible[:, 1:, None]
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
