"""Exact match of the second demo on easy-vqa's test questions, which it was not trained on."""

from __future__ import annotations

import torch
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from catp.export.demo import scenes
from catp.export.demo.batches import IGNORE, AskedPicture
from catp.export.demo.fine.batches import WiderBatches, as_asked
from catp.export.demo.losses import answer_logits, describe_images
from catp.export.demo.untrained import QUERIES
from catp.export.demo.vqa import easy


@torch.no_grad()
def exact_match_easy(
    model: Blip2ForConditionalGeneration, processor: Blip2Processor, most: int | None = None
) -> dict[str, float]:
    """Share of test questions whose whole answer is the greedy one, every query token kept.

    Args:
        most: pictures that are asked about; None: all.
    """
    batches = WiderBatches(processor, "held-out", 0, 1, 1, 0)
    right = total = 0
    unknown = torch.full((scenes.GRID**2, 2), IGNORE)
    for picture in easy.pictures("test")[:most]:
        asked = [scenes.SceneQuestion(as_asked(text), answer) for text, answer in picture.questions]
        batch = batches.collate([AskedPicture(picture.turned(0), unknown, asked)])
        queries = describe_images(model, batch.pixel_values)
        kept = torch.ones(1, QUERIES, dtype=torch.bool)
        best = answer_logits(model, queries, batch.text, kept, False).argmax(-1)
        right += int(((best == batch.labels) | (batch.labels == IGNORE)).all(-1).sum())
        total += len(asked)
    return {"easy_vqa_questions": total, "easy_vqa_exact_match": right / total}
