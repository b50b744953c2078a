"""Training batches: pictures, what is in their cells, and questions with answers."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
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


class Batches(torch.utils.data.Dataset[TrainingBatch]):
    """Batch i is a function of (seed, split, i) alone, whoever computes it."""

    def __init__(
        self,
        processor: Blip2Processor,
        split: scenes.Split,
        count: int,
        images_per_batch: int,
        questions_per_image: int,
        seed: int,
    ) -> None:
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
        rows = [scenes.random_scene(rng, self.split) for _ in range(self.images_per_batch)]
        colors, shapes = list(scenes.COLORS), list(scenes.SHAPES)
        cells = torch.tensor([len(colors), len(shapes)]).repeat(len(rows), scenes.GRID**2, 1)
        for row, scene in enumerate(rows):
            for thing in scene.things:
                cells[row, thing.cell] = torch.tensor([colors.index(thing.color), shapes.index(thing.shape)])
        pixels = preprocess([scenes.draw(scene, rng) for scene in rows], self.image_spec)
        sequences, answer_starts = [], []
        for scene in rows:
            for question in scenes.questions(scene, rng, self.questions_per_image):
                prompt, answer = self._tokenize(question)
                sequences.append([*prompt, *answer, EOS])
                answer_starts.append(len(prompt))
        length = max(map(len, sequences))
        text = torch.full((len(sequences), length), PAD)
        labels = torch.full((len(sequences), length), IGNORE)
        for i, (sequence, start) in enumerate(zip(sequences, answer_starts)):
            text[i, : len(sequence)] = torch.tensor(sequence)
            labels[i, start - 1 : len(sequence) - 1] = torch.tensor(sequence[start:])
        shape = (len(rows), self.questions_per_image, length)
        return TrainingBatch(torch.from_numpy(pixels), cells, text.view(shape), labels.view(shape))


def stream(dataset: Batches) -> Iterator[TrainingBatch]:
    # A worker draws the pictures while the main process trains.
    return iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4))
