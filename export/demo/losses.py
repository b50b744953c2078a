"""The losses that the demo model is trained on and measured by."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from transformers import Blip2ForConditionalGeneration

from catp.export.demo import scenes
from catp.export.demo.batches import IGNORE, Batches
from catp.export.demo.untrained import QUERIES


def describe_images(model: Blip2ForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """Query embeddings before projection, float32 [B, N, Dq]."""
    image_embeds = model.vision_model(pixel_values).last_hidden_state
    queries = model.query_tokens.expand(len(pixel_values), -1, -1)
    return model.qformer(query_embeds=queries, encoder_hidden_states=image_embeds).last_hidden_state


class CellReader(torch.nn.Module):
    """The auxiliary head: query q tells row, column, colour and shape of cell q mod 9. Not part of the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (scenes.GRID, scenes.GRID, len(scenes.COLORS) + 1, len(scenes.SHAPES) + 1)
        self.linear = torch.nn.Linear(width, sum(self.sizes))

    def loss(self, queries: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        cell = torch.arange(queries.shape[1]) % scenes.GRID**2
        place = torch.stack([cell // scenes.GRID, cell % scenes.GRID], -1).expand(len(cells), -1, -1)
        targets = torch.cat([place, cells[:, cell]], -1)
        parts = self.linear(queries).split(self.sizes, -1)
        return torch.stack(
            [F.cross_entropy(part.flatten(0, 1), targets[..., i].flatten()) for i, part in enumerate(parts)]
        ).mean()


def answer_logits(
    model: Blip2ForConditionalGeneration, queries: torch.Tensor, text: torch.Tensor, kept: torch.Tensor, compact: bool
) -> torch.Tensor:
    """Logits [B, Q, L, V] of all questions of an image behind one shared prefix.

    Args:
        queries: query embeddings [B, N, Dq].
        text: token ids [B, Q, L].
        kept: bool [B, N]; the others are invisible, as if they had been pruned.
        compact: whether kept tokens close ranks (positions 0..k-1) or keep their own positions.
    """
    batch, count, length = text.shape
    n = queries.shape[1]
    prefix = model.language_projection(queries)
    words = model.get_input_embeddings()(text.flatten(1))
    if compact:
        prefix_positions, start = kept.long().cumsum(1) - 1, kept.sum(1, keepdim=True)
        prefix_positions = prefix_positions.clamp(min=0)
    else:
        prefix_positions, start = torch.arange(n).expand(batch, -1), torch.full((batch, 1), n)
    text_positions = (start + torch.arange(length)).repeat(1, count)
    # A token sees the kept part of the prefix that is not after it, and its own question up to itself.
    question = torch.arange(count).repeat_interleave(length)
    step = torch.arange(length).repeat(count)
    sees = torch.zeros(batch, n + count * length, n + count * length, dtype=torch.bool)
    sees[:, :n, :n] = torch.ones(n, n, dtype=torch.bool).tril() & kept[:, None]
    sees[:, :n, :n] |= torch.eye(n, dtype=torch.bool)  # a dropped token sees itself: softmax needs something
    sees[:, n:, :n] = kept[:, None]
    sees[:, n:, n:] = (question[:, None] == question) & (step[:, None] >= step)
    hidden = model.language_model.model(
        inputs_embeds=torch.cat([prefix, words], 1),
        attention_mask=sees[:, None],
        position_ids=torch.cat([prefix_positions, text_positions], 1),
        use_cache=False,
    ).last_hidden_state
    return model.language_model.lm_head(hidden[:, n:]).view(batch, count, length, -1)


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 2), labels.flatten(), ignore_index=IGNORE)


def random_kept(batch: int, rng: np.random.Generator, fewest: int = 4) -> torch.Tensor:
    """bool [batch, N]: per row, between `fewest` and all queries, chosen at random."""
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(QUERIES), (batch, 1)), axis=1))
    return order < torch.from_numpy(rng.integers(fewest, QUERIES + 1, (batch, 1)))


@torch.no_grad()
def exact_match(model: Blip2ForConditionalGeneration, batches: Batches, drop: int = 0, compact: bool = False) -> float:
    """Share of questions whose whole answer, EOS included, is the greedy one (with `drop` random queries gone)."""
    rng, right, total = np.random.default_rng(0), 0, 0
    for i in range(len(batches)):
        batch = batches[i]
        order = torch.from_numpy(rng.permuted(np.tile(np.arange(QUERIES), (len(batch.text), 1)), axis=1))
        queries = describe_images(model, batch.pixel_values)
        best = answer_logits(model, queries, batch.text, order >= drop, compact).argmax(-1)
        right += int(((best == batch.labels) | (batch.labels == IGNORE)).all(-1).sum())
        total += batch.labels.shape[0] * batch.labels.shape[1]
    return right / total


@torch.no_grad()
def query_spread(model: Blip2ForConditionalGeneration, batches: Batches) -> float:
    """How far apart an image's projected queries are: |q - mean q| / |q|, 0 when all are equal."""
    projected = model.language_projection(describe_images(model, batches[0].pixel_values))
    return float((projected - projected.mean(1, keepdim=True)).norm() / projected.norm())
