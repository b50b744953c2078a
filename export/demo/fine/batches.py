"""Training batches of both worlds: scenes, and the pictures of easy-vqa's training split."""

from __future__ import annotations

import numpy as np
import torch

from catp.export.demo import scenes
from catp.export.demo.batches import IGNORE, AskedPicture, Batches, TrainingBatch, asked_scenes
from catp.export.demo.vqa import easy

EASY_SHARE = 3
"""One picture in so many is easy-vqa's."""


def as_asked(question: str) -> str:
    """A bare question with the words that BLIP-2 has around it."""
    return f"Question: {question} Answer:"


def asked_easy(rng: np.random.Generator, count: int) -> AskedPicture:
    """A training picture of easy-vqa, mirrored at random; of its one shape no cell is known."""
    pictures = easy.pictures("train")
    picture = pictures[int(rng.integers(len(pictures)))]
    chosen = rng.integers(len(picture.questions), size=count)
    asked = [scenes.SceneQuestion(as_asked(text), answer) for text, answer in (picture.questions[i] for i in chosen)]
    return AskedPicture(picture.turned(4 * int(rng.integers(2))), torch.full((scenes.GRID**2, 2), IGNORE), asked)


class WiderBatches(Batches):
    """Like the first demo's, with easy-vqa's pictures among those to train on; held-out batches are scenes alone."""

    def __getitem__(self, index: int) -> TrainingBatch:
        rng = np.random.default_rng([self.seed, self.split == "train", index])
        easy_ones = self.images_per_batch // EASY_SHARE if self.split == "train" else 0
        rows = asked_scenes(rng, self.split, self.images_per_batch - easy_ones, self.questions_per_image)
        return self.collate([*rows, *(asked_easy(rng, self.questions_per_image) for _ in range(easy_ones))])
