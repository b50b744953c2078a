"""Training batches: pictures, what is in their cells, and questions with answers."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from transformers import Blip2Processor

from catp.export.demo import scenes
from catp.export.demo.untrained import EOS, PAD
from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.inputs.images import preprocess

IGNORE = -100
"""Label of a token that is not part of an answer."""


@dataclass(frozen=True)
class TrainingBatch:
    pixel_values: torch.Tensor  # float32 [B, 3, H, W]
    cells: torch.Tensor  # int64 [B, 9, 2]: colour and shape of each cell; the last class is "nothing"
    text: torch.Tensor  # int64 [B, Q, L]: prompt, answer, EOS, padding
    labels: torch.Tensor  # int64 [B, Q, L]: the next token where it belongs to the answer, else IGNORE


@dataclass(frozen=True)
class AskedPicture:
    """A picture, what is in its cells, and questions with answers."""

    image: Image.Image
    cells: torch.Tensor  # int64 [9, 2], as in a batch
    asked: Sequence[scenes.SceneQuestion]


def asked_scenes(rng: np.random.Generator, split: scenes.Split, count: int, questions: int) -> list[AskedPicture]:
    """So many scenes with so many questions each."""
    drawn = [scenes.random_scene(rng, split) for _ in range(count)]
    images = [scenes.draw(scene, rng) for scene in drawn]
    return [
        AskedPicture(image, _cells(scene), scenes.questions(scene, rng, questions))
        for scene, image in zip(drawn, images)
    ]


def _cells(scene: scenes.Scene) -> torch.Tensor:
    colors, shapes = list(scenes.COLORS), list(scenes.SHAPES)
    cells = torch.tensor([len(colors), len(shapes)]).repeat(scenes.GRID**2, 1)
    for thing in scene.things:
        cells[thing.cell] = torch.tensor([colors.index(thing.color), shapes.index(thing.shape)])
    return cells


class Batches(torch.utils.data.Dataset[TrainingBatch]):
    """Batch i is a function of (seed, split, i) alone, whoever computes it.

    Args:
        first: the first batch that a stream brings; those before it were used before an interruption.
    """

    def __init__(
        self,
        processor: Blip2Processor,
        split: scenes.Split,
        count: int,
        images_per_batch: int,
        questions_per_image: int,
        seed: int,
        first: int = 0,
    ) -> None:
        self.first = first
        self.tokenizer, self.split, self.count, self.seed = processor.tokenizer, split, count, seed
        self.images_per_batch, self.questions_per_image = images_per_batch, questions_per_image
        self.image_spec = ImageSpec.from_preprocessor_config(processor.image_processor.to_dict())

        # There are only some hundred different prompts, and tokenising is slower than drawing.
        self._tokenize = functools.cache(self._tokenize_once)

    def _tokenize_once(self, question: scenes.SceneQuestion) -> tuple[list[int], list[int]]:
        prompt = self.tokenizer(question.prompt).input_ids
        return prompt, self.tokenizer(f" {question.answer}", add_special_tokens=False).input_ids

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> TrainingBatch:
        rng = np.random.default_rng([self.seed, self.split == "train", index])
        return self.collate(asked_scenes(rng, self.split, self.images_per_batch, self.questions_per_image))

    def collate(self, rows: Sequence[AskedPicture]) -> TrainingBatch:
        """Tensors of pictures that have the same number of questions."""
        pixels = preprocess([row.image for row in rows], self.image_spec)
        sequences, answer_starts = [], []
        for row in rows:
            for question in row.asked:
                prompt, answer = self._tokenize(question)
                sequences.append([*prompt, *answer, EOS])
                answer_starts.append(len(prompt))
        length = max(map(len, sequences))
        text = torch.full((len(sequences), length), PAD)
        labels = torch.full((len(sequences), length), IGNORE)
        for i, (sequence, start) in enumerate(zip(sequences, answer_starts)):
            text[i, : len(sequence)] = torch.tensor(sequence)
            labels[i, start - 1 : len(sequence) - 1] = torch.tensor(sequence[start:])
        shape = (len(rows), len(rows[0].asked), length)
        cells = torch.stack([row.cells for row in rows])
        return TrainingBatch(torch.from_numpy(pixels), cells, text.view(shape), labels.view(shape))


def stream(dataset: Batches) -> Iterator[TrainingBatch]:
    # A worker draws the pictures while the main process trains.
    wanted = range(dataset.first, len(dataset))
    return iter(torch.utils.data.DataLoader(dataset, batch_size=None, sampler=wanted, num_workers=1, prefetch_factor=4))
