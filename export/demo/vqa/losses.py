"""The losses that the small BLIP is trained on."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from transformers import BlipForQuestionAnswering

from catp.export.demo import scenes
from catp.export.demo.vqa.batches import COLORS, IGNORE, SHAPES, VqaBatch, cell_of_patch
from catp.export.demo.vqa.forward import answer_logits, image_embeds, question_embeds
from catp.export.demo.vqa.pruning import TokenPruning

DOTS = 8
"""Dots a side in which a cell is painted."""


class PatchReader(torch.nn.Module):
    """The auxiliary head: each patch tells row, column, colour and shape of its cell. Not part of the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (scenes.GRID, scenes.GRID, len(COLORS), len(SHAPES))
        self.linear = torch.nn.Linear(width, sum(self.sizes))

    def loss(self, image: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """Cross-entropy, averaged over the four things to tell.

        Args:
            image: image embeddings [B, 1+N, W] of all patches.
            patches: int64 [B, N, 2], colour and shape.
        """
        place = torch.from_numpy(np.stack(np.divmod(cell_of_patch(), scenes.GRID), -1))
        targets = torch.cat([place.expand(len(patches), -1, -1), patches], -1)
        parts = self.linear(image[:, 1:]).split(self.sizes, -1)
        return torch.stack(
            [
                F.cross_entropy(part.flatten(0, 1), targets[..., i].flatten(), ignore_index=IGNORE)
                for i, part in enumerate(parts)
            ]
        ).mean()


class CellPainter(torch.nn.Module):
    """A second auxiliary head: each patch paints what is foreground in its cell, in 8 x 8 dots. Not part of the model.

    Naming a shape tells a patch little about why it was wrong; painting tells it for every dot.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, DOTS**2)

    def loss(self, image: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Binary cross-entropy of the dots, from image embeddings [B, 1+N, W] of all patches."""
        # Most of every picture is background, of one colour.
        background = pixel_values.flatten(2).median(-1).values[..., None, None]
        foreground = ((pixel_values - background).abs().amax(1, keepdim=True) > 0.3).float()
        dots = F.adaptive_avg_pool2d(foreground, scenes.GRID * DOTS)
        cells = dots.view(-1, scenes.GRID, DOTS, scenes.GRID, DOTS).transpose(2, 3).reshape(len(dots), -1, DOTS**2)
        return F.binary_cross_entropy_with_logits(self.linear(image[:, 1:]), cells[:, cell_of_patch()])


def batch_logits(
    model: BlipForQuestionAnswering,
    batch: VqaBatch,
    image: torch.Tensor,
    valid: torch.Tensor,
    pruning: TokenPruning | None = None,
) -> torch.Tensor:
    """Logits [B, Q, A, V] of a batch's answers, from its image embeddings."""
    return answer_logits(model, batch.answers, *question_embeds(model, batch.questions, image, valid, pruning))


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 2), labels.flatten(), ignore_index=IGNORE)


def alignment_loss(image: TokenPruning, text: TokenPruning, questions_per_image: int) -> torch.Tensor:
    """Cosine distance between what each entry of the dictionary finds in an image and in its questions."""
    assert isinstance(image.feature, torch.Tensor) and isinstance(text.feature, torch.Tensor)
    repeated = image.feature.repeat_interleave(questions_per_image, 0).flatten(0, 1)
    return F.cosine_embedding_loss(repeated, text.feature.flatten(0, 1), torch.ones(len(repeated)))


def right_answers(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether the greedy answer, its end included, is the whole right one: bool [B, Q]."""
    return ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(-1)


def dense_logits(model: BlipForQuestionAnswering, batch: VqaBatch) -> torch.Tensor:
    return batch_logits(model, batch, *image_embeds(model, batch.pixel_values))
