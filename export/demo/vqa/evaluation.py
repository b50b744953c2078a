"""How often the small BLIP is right: held-out scenes, and easy-vqa's test split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import BlipForQuestionAnswering, BlipProcessor

from catp.export.demo.vqa import easy
from catp.export.demo.vqa.batches import AskedPicture, VqaBatches, asked_scene
from catp.export.demo.vqa.costs import vision_macs
from catp.export.demo.vqa.forward import image_embeds
from catp.export.demo.vqa.losses import batch_logits, right_answers
from catp.export.demo.vqa.pruning import TokenPruning

SCENE_QUESTIONS = 6
"""Questions about each held-out scene."""


@dataclass(frozen=True)
class VqaScore:
    """Answers to one world's questions, and their cost. Tokens are means, CLS and merged ones included."""

    questions: int
    exact_match: float
    vision_macs: float
    vision_tokens: tuple[float, ...]  # that reach each layer's MLP; empty without pruning
    question_tokens: tuple[float, ...]


def held_out_scenes(count: int, seed: int) -> list[AskedPicture]:
    rng = np.random.default_rng(seed)
    return [asked_scene(rng, "held-out", SCENE_QUESTIONS) for _ in range(count)]


def easy_test(count: int | None = None) -> list[AskedPicture]:
    """The first `count` pictures of easy-vqa's test split (None: all) with all questions about them."""
    none = np.zeros((0, 2), dtype=np.int64)
    return [AskedPicture(picture.turned(0), none, picture.questions) for picture in easy.pictures("test")[:count]]


@torch.no_grad()
def score(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    pictures: Sequence[AskedPicture],
    pruning: tuple[torch.Tensor, float] | None = None,
    coupled: bool = False,
    pictures_at_once: int = 25,
) -> VqaScore:
    """Exact match of greedy answers in float32, each question pruned as if it was asked alone.

    An answer given token by token is the right one exactly if, behind each of the right one's tokens, the next one is
    the likeliest: one pass tells it.

    Args:
        pruning: `space_dict` [T, W] and temperature; None for the dense model.
        coupled: whether pictures of a batch keep as many tokens as the one that keeps most (MADTP's official code).
    """
    batches = VqaBatches(processor, "held-out", 0, 0, 0, 0)
    right = total = 0
    macs: list[float] = []
    seen: list[np.ndarray] = []
    read: list[np.ndarray] = []
    for chunk in _chunks(pictures, pictures_at_once):
        most = max(len(picture.asked) for picture in chunk)
        counts = torch.tensor([len(picture.asked) for picture in chunk])
        # Pictures of a batch have equally many questions: the first is repeated, and its repetitions do not count.
        rows = [AskedPicture(p.image, p.patches, [*p.asked, *[p.asked[0]] * (most - len(p.asked))]) for p in chunk]
        batch = batches.collate(rows)
        vision = TokenPruning(*pruning, coupled=coupled) if pruning else None
        text = TokenPruning(*pruning, coupled=coupled) if pruning else None
        image, valid = image_embeds(model, batch.pixel_values, vision)
        asked = torch.arange(most) < counts[:, None]
        right += int((right_answers(batch_logits(model, batch, image, valid, text), batch.labels) & asked).sum())
        total += int(counts.sum())
        macs += vision_macs(model, vision).expand(len(chunk)).tolist()
        if vision and text:
            seen.append(torch.stack(vision.after, -1).numpy())
            read.append(torch.stack(text.after, -1)[asked.flatten()].numpy())
    return VqaScore(total, right / total, float(np.mean(macs)), _means(seen), _means(read))


def _means(tables: Sequence[np.ndarray]) -> tuple[float, ...]:
    return tuple(round(float(mean), 2) for mean in np.concatenate(tables).mean(0)) if tables else ()


def _chunks(pictures: Sequence[AskedPicture], size: int) -> Iterator[Sequence[AskedPicture]]:
    return (pictures[start : start + size] for start in range(0, len(pictures), size))
