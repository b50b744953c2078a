"""The pictures and questions of the package `easy-vqa`, in its official split."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import easy_vqa
import numpy as np
from PIL import Image

EasySplit = Literal["train", "test"]

COLORS = ("red", "green", "blue", "yellow", "black", "gray", "teal", "brown")
SHAPES = ("circle", "rectangle", "triangle")


@dataclass(frozen=True)
class EasyPicture:
    """One picture of 64 x 64 pixels and all questions that the package asks about it."""

    number: int  # the package's own, within its split
    file: Path
    questions: tuple[tuple[str, str], ...]  # text and answer

    @property
    def color(self) -> str | None:
        """Its one shape's colour, where a question tells it."""
        return next((answer for _, answer in self.questions if answer in COLORS), None)

    @property
    def shape(self) -> str | None:
        return next((answer for _, answer in self.questions if answer in SHAPES), None)

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """uint8 [64, 64, 3]."""
        return np.asarray(Image.open(self.file).convert("RGB"))

    def turned(self, symmetry: int) -> Image.Image:
        """One of the eight mirrored and turned forms of the picture; 0 is itself. No question asks for a direction."""
        pixels = np.rot90(self.pixels, symmetry % 4)
        return Image.fromarray(np.ascontiguousarray(pixels[:, ::-1] if symmetry >= 4 else pixels))


@functools.cache
def pictures(split: EasySplit) -> tuple[EasyPicture, ...]:
    """The 4,000 pictures to train on, or the 1,000 to test with, by number."""
    train = split == "train"
    texts, answers, numbers = (easy_vqa.get_train_questions if train else easy_vqa.get_test_questions)()
    files = (easy_vqa.get_train_image_paths if train else easy_vqa.get_test_image_paths)()
    asked: dict[int, list[tuple[str, str]]] = {}
    for text, answer, number in zip(texts, answers, numbers):
        asked.setdefault(number, []).append((text, answer))
    return tuple(EasyPicture(n, Path(files[n]), tuple(asked[n])) for n in sorted(asked))
