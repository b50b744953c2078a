"""Training batches: pictures of both worlds, what their patches show, and several questions about each."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from transformers import BlipProcessor

from catp.export.demo import scenes
from catp.export.demo.vqa import easy
from catp.export.demo.vqa.untrained import CLS, DEC, PAD, PATCHES, SEP
from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.inputs.images import preprocess

IGNORE = -100
"""Label of what is not to be learnt."""

NOTHING = "nothing"
COLORS = tuple(dict.fromkeys([*scenes.COLORS, *easy.COLORS, NOTHING]))
SHAPES = tuple(dict.fromkeys([*scenes.SHAPES, *easy.SHAPES, NOTHING]))

World = Literal["both", "scenes", "easy-vqa"]


@dataclass(frozen=True)
class VqaBatch:
    """B pictures with Q questions each."""

    pixel_values: torch.Tensor  # float32 [B, 3, H, W]
    patches: torch.Tensor  # int64 [B, N, 2]: colour and shape in each patch's cell (easy-vqa: in the picture)
    questions: torch.Tensor  # int64 [B, Q, L]: [CLS] question [SEP], padding
    answers: torch.Tensor  # int64 [B, Q, A]: [DEC] answer, padding
    labels: torch.Tensor  # int64 [B, Q, A]: answer [SEP], IGNORE


@dataclass(frozen=True)
class AskedPicture:
    """A picture, what its patches show, and questions with answers as plain text."""

    image: Image.Image
    patches: np.ndarray  # int64 [N, 2]
    asked: Sequence[tuple[str, str]]


def easy_pictures(images_per_batch: int, final: bool) -> int:
    """How many pictures of a batch are easy-vqa's: one in three, since scenes are harder; at the end two in three."""
    return images_per_batch * (2 if final else 1) // 3


def plain(question: scenes.SceneQuestion) -> tuple[str, str]:
    """A scene's question without the words that BLIP-2 has around it."""
    return question.prompt.removeprefix("Question: ").removesuffix(" Answer:"), question.answer


def cell_of_patch() -> np.ndarray:
    """int64 [N]: which of the 3 x 3 cells of a scene each patch lies in."""
    line = np.arange(PATCHES) * scenes.GRID // PATCHES
    return (line[:, None] * scenes.GRID + line).ravel()


def asked_scene(rng: np.random.Generator, split: scenes.Split, count: int) -> AskedPicture:
    scene = scenes.random_scene(rng, split)
    return AskedPicture(scenes.draw(scene, rng), _shown(scene), [plain(q) for q in scenes.questions(scene, rng, count)])


def _shown(scene: scenes.Scene) -> np.ndarray:
    """int64 [N, 2]: colour and shape in the cell of each patch."""
    cells = np.tile([COLORS.index(NOTHING), SHAPES.index(NOTHING)], (scenes.GRID**2, 1))
    for thing in scene.things:
        cells[thing.cell] = COLORS.index(thing.color), SHAPES.index(thing.shape)
    return cells[cell_of_patch()]


def crowded_scene(rng: np.random.Generator) -> scenes.Scene:
    """A scene with something in nearly every cell, colours repeated: more to learn from than one that is asked about.

    Scenes that are asked about have at most five things, so no layout of theirs is among these but by a rare chance,
    and then one to train on.
    """
    colors, shapes = list(scenes.COLORS), scenes.SHAPES
    while True:
        scene = scenes.Scene(
            tuple(
                scenes.Thing(cell, colors[rng.integers(len(colors))], shapes[rng.integers(len(shapes))])
                for cell in range(scenes.GRID**2)
                if rng.random() < 0.9
            )
        )
        if scene.split == "train":
            return scene


def asked_easy(rng: np.random.Generator, count: int, turned: bool) -> AskedPicture:
    """A training picture of easy-vqa, mirrored at random, and turned if that is wanted."""
    pictures = easy.pictures("train")
    picture = pictures[int(rng.integers(len(pictures)))]
    shown = [
        COLORS.index(picture.color) if picture.color else IGNORE,
        SHAPES.index(picture.shape) if picture.shape else IGNORE,
    ]
    chosen = rng.integers(len(picture.questions), size=count)
    image = picture.turned(int(rng.integers(8)) if turned else 4 * int(rng.integers(2)))
    return AskedPicture(image, np.tile(shown, (PATCHES**2, 1)), [picture.questions[i] for i in chosen])


class VqaBatches(torch.utils.data.Dataset[VqaBatch]):
    """Batch i is a function of (seed, split, i) alone, whoever computes it. easy-vqa's test split is never in it."""

    def __init__(
        self,
        processor: BlipProcessor,
        split: scenes.Split,
        count: int,
        images_per_batch: int,
        questions_per_image: int,
        seed: int,
        crowded: bool = False,
        final: bool = False,
    ) -> None:
        self.tokenizer, self.split, self.count, self.seed = processor.tokenizer, split, count, seed
        self.crowded = crowded  # scenes with something nearly everywhere, about which nothing is asked
        self.final = final  # two pictures in three are easy-vqa's, and upright
        self.images_per_batch, self.questions_per_image = images_per_batch, questions_per_image
        self.image_spec = ImageSpec.from_preprocessor_config(processor.image_processor.to_dict())

        # There are only some hundred different texts, and tokenising is slower than drawing.
        self._tokenize = functools.cache(self._tokenize_once)

    def _tokenize_once(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> VqaBatch:
        rng = np.random.default_rng([self.seed, self.split == "train", index])
        easy_ones = easy_pictures(self.images_per_batch, self.final) if self.split == "train" else 0
        scene_ones = self.images_per_batch - easy_ones
        if self.crowded:
            nothing = [("?", "?")] * self.questions_per_image
            crowds = [crowded_scene(rng) for _ in range(scene_ones)]
            rows = [AskedPicture(scenes.draw(scene, rng), _shown(scene), nothing) for scene in crowds]
        else:
            rows = [asked_scene(rng, self.split, self.questions_per_image) for _ in range(scene_ones)]
        rows += [asked_easy(rng, self.questions_per_image, not self.final) for _ in range(easy_ones)]
        return self.collate(rows)

    def collate(self, rows: Sequence[AskedPicture]) -> VqaBatch:
        """Tensors of pictures that have the same number of questions."""
        pixels = preprocess([row.image for row in rows], self.image_spec)
        asked = [pair for row in rows for pair in row.asked]
        questions = [[CLS, *self._tokenize(question), SEP] for question, _ in asked]
        answers = [self._tokenize(answer) for _, answer in asked]
        shape = (len(rows), len(rows[0].asked), -1)
        return VqaBatch(
            torch.from_numpy(pixels),
            torch.from_numpy(np.stack([row.patches for row in rows])),
            _padded(questions, PAD).view(shape),
            _padded([[DEC, *answer] for answer in answers], PAD).view(shape),
            _padded([[*answer, SEP] for answer in answers], IGNORE).view(shape),
        )


def _padded(rows: Sequence[Sequence[int]], value: int) -> torch.Tensor:
    table = torch.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        table[i, : len(row)] = torch.tensor(row)
    return table


def stream(dataset: torch.utils.data.Dataset[VqaBatch]) -> Iterator[VqaBatch]:
    # A worker draws the pictures while the main process trains.
    return iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4))
