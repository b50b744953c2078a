"""MADTP's token pruning as training needs it: differentiable, each sample with its own number of tokens.

The rule is MADTP's (arXiv 2403.02991). Its official code couples the samples of a batch (all keep as many tokens as
the sample that needs most); here a sample keeps what it would keep alone, so that training sees what an answer to one
question sees. `coupled` gives the official behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

EPSILON = 1e-8
TOKENS = 100
"""Rows of `space_dict`, as in the paper's models."""


@dataclass
class TokenPruning:
    """One pass through an encoder: the learned dictionary, how sharp the threshold is, and what came of it."""

    space_dict: torch.Tensor  # float32 [T, W], shared by the vision and the question encoder
    temperature: float  # 0 prunes nothing
    coupled: bool = False
    feature: torch.Tensor | float = 0.0  # [B, T, W]: what each entry finds in the layers so far, summed
    before: list[torch.Tensor] = field(default_factory=list)  # int64 [B] a layer: tokens that reach its attention
    after: list[torch.Tensor] = field(default_factory=list)  # int64 [B] a layer: tokens that reach its MLP

    def prune(
        self,
        layer_input: torch.Tensor,
        attended: torch.Tensor,
        probabilities: torch.Tensor,
        context: torch.Tensor,
        valid: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The tokens that go on after a layer's attention.

        Args:
            layer_input: [B, 1+N, W], before the layer's norm; token 0 always stays.
            attended: [B, 1+N, W], after attention and residual; what is kept or merged.
            probabilities: attention [B, H, 1+N, 1+N].
            context: [B, H, 1+N, d], attention times values.
            valid: bool [B, 1+N]; the others are padding, which no valid token attends to.

        Returns:
            Tokens [B, 1+k+1, W], the merged one last, and which of them are valid.
        """
        # Which tokens stay must not hang on bfloat16, whatever the products around compute in.
        with torch.autocast("cpu", enabled=False):
            return self._prune(layer_input, attended, probabilities.float(), context.float(), valid)

    def _prune(
        self,
        layer_input: torch.Tensor,
        attended: torch.Tensor,
        probabilities: torch.Tensor,
        context: torch.Tensor,
        valid: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        real = valid[:, 1:]
        guidance = layer_input[:, 1:] @ self.space_dict.T
        self._add_feature(layer_input[:, 1:], guidance, real)
        scores = token_scores(guidance, probabilities, context, valid)
        kept = self._counts(guidance, scores, real)
        pruned = kept < real.sum(1)
        self.before.append(valid.sum(1))
        self.after.append(1 + kept + pruned)
        if self.coupled:
            self.after[-1] = self.after[-1].max().expand(len(kept))
        return _kept_and_merged(attended, scores, kept, pruned, real)

    def _add_feature(self, tokens: torch.Tensor, guidance: torch.Tensor, real: torch.Tensor) -> None:
        # As in the official code: an entry's feature is the tokens' mean, weighted by how much it finds in them.
        found = (guidance / tokens.shape[-1] ** 0.5).masked_fill(~real[..., None], -torch.inf).softmax(1)
        self.feature = self.feature + found.transpose(1, 2) @ tokens

    @torch.no_grad()
    def _counts(self, guidance: torch.Tensor, scores: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """How many of its N tokens each sample keeps, int64 [B]; all of them if it prunes nothing."""
        total = real.sum(1)
        if self.temperature <= 0:
            return total
        weights = (guidance / self.temperature).masked_fill(~real[..., None], -torch.inf).softmax(1)
        threshold = (weights * scores[..., None]).sum(1).amin(1)
        count = ((scores > threshold[:, None]) & real).sum(1)
        if self.coupled:
            count = count.max().expand_as(count)
        return torch.where((count < 1) | (total - count <= 1), total, count)


def token_scores(
    guidance: torch.Tensor, probabilities: torch.Tensor, context: torch.Tensor, valid: torch.Tensor
) -> torch.Tensor:
    """Importance of tokens 1..N, float32 [B, N]: the mean of self-attention, guidance and CLS attention; padding 0."""
    real = valid[:, 1:].float()
    received = (probabilities[:, :, 1:, 1:].amax(1) * real[..., None]).sum(1) * real
    received = received / (received.sum(1, keepdim=True) + EPSILON)
    guided = guidance.amax(-1) * real
    guided = guided / (guided.sum(1, keepdim=True) + EPSILON)
    size = context[:, :, 1:].norm(dim=-1) * real[:, None]
    share = size / (size.sum(1, keepdim=True) + EPSILON)  # of the heads, for each token
    asked = (probabilities[:, :, 0, 1:] * share).sum(1)
    return (received + guided + asked) / 3 * real


def _kept_and_merged(
    tokens: torch.Tensor, scores: torch.Tensor, kept: torch.Tensor, pruned: torch.Tensor, real: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token 0, the highest of the others, and the sum of the rest weighted by their scores."""
    ranked = scores.masked_fill(~real, -torch.inf).argsort(1, descending=True)
    rank = ranked.argsort(1)
    dropped = (rank >= kept[:, None]) & real
    weights = torch.where(dropped, scores, 0)
    weights = weights / torch.where(pruned, weights.sum(1), 1)[:, None]
    merged = (weights[..., None] * tokens[:, 1:]).sum(1, keepdim=True)
    most = int(kept.max())
    chosen = ranked[:, :most]
    rows = tokens[:, 1:].gather(1, chosen[..., None].expand(-1, -1, tokens.shape[-1]))
    stays = torch.arange(most) < kept[:, None]
    parts, masks = [tokens[:, :1], rows], [torch.ones_like(stays[:, :1]), stays]
    if pruned.any():
        parts, masks = [*parts, merged], [*masks, pruned[:, None]]
    return torch.cat(parts, 1), torch.cat(masks, 1)
