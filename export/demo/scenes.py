"""Procedurally drawn scenes and the questions about them: the demo model's visual world.

A scene is a 3 x 3 grid with two to five coloured shapes, every colour used at most once. Its *layout*
(which coloured shape stands in which cell) decides whether it belongs to the training or to the held-out
split, so a held-out layout is never trained on, whatever its sizes, jitter and background.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw

Split = Literal["train", "held-out"]

CANVAS = 192  # pixels; the model's processor resizes to its own input size
GRID = 3
PLACES = (
    "top left", "top center", "top right",
    "middle left", "center", "middle right",
    "bottom left", "bottom center", "bottom right",
)  # fmt: skip
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 140, 44),
    "blue": (40, 90, 200),
    "yellow": (240, 205, 30),
    "purple": (130, 60, 170),
    "orange": (250, 130, 20),
    "cyan": (30, 190, 200),
    "black": (25, 25, 25),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "cross")
HELD_OUT_SHARE = 10  # one layout in ten is held out


@dataclass(frozen=True)
class Thing:
    """One coloured shape in one cell of the grid (0 is top left, row by row)."""

    cell: int
    color: str
    shape: str


@dataclass(frozen=True)
class SceneQuestion:
    """A prompt in BLIP-2's VQA form and its one right answer."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Scene:
    """A picture's content. `things` is sorted by cell."""

    things: tuple[Thing, ...]

    @property
    def split(self) -> Split:
        key = ";".join(f"{t.cell}{t.color}{t.shape}" for t in self.things)
        return "held-out" if zlib.crc32(key.encode()) % HELD_OUT_SHARE == 0 else "train"

    def at(self, cell: int) -> Thing | None:
        return next((t for t in self.things if t.cell == cell), None)


def random_scene(rng: np.random.Generator, split: Split) -> Scene:
    """A scene of the wanted split, by rejection: layouts decide the split, not the generator."""
    while True:
        count = int(rng.integers(2, 6))
        cells = np.sort(rng.permutation(GRID * GRID)[:count])
        colors = rng.permutation(len(COLORS))[:count]
        shapes = rng.integers(len(SHAPES), size=count)
        names = list(COLORS)
        scene = Scene(tuple(Thing(int(c), names[k], SHAPES[s]) for c, k, s in zip(cells, colors, shapes)))
        if scene.split == split:
            return scene


def draw(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """The scene as an RGB image of CANVAS x CANVAS pixels; `rng` chooses background, sizes and offsets."""
    shade = int(rng.integers(215, 256))
    image = Image.new("RGB", (CANVAS, CANVAS), (shade, shade, shade))
    pen = ImageDraw.Draw(image)
    cell_size = CANVAS / GRID
    for thing in scene.things:
        radius = cell_size * rng.uniform(0.28, 0.40)
        slack = cell_size / 2 - radius
        row, column = divmod(thing.cell, GRID)
        x = (column + 0.5) * cell_size + rng.uniform(-slack, slack)
        y = (row + 0.5) * cell_size + rng.uniform(-slack, slack)
        _draw_shape(pen, thing.shape, x, y, radius, COLORS[thing.color])
    return image


def _draw_shape(
    pen: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, color: tuple[int, int, int]
) -> None:
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=color)
    elif shape == "square":
        pen.rectangle((x - 0.85 * r, y - 0.85 * r, x + 0.85 * r, y + 0.85 * r), fill=color)
    elif shape == "cross":
        pen.rectangle((x - r, y - 0.3 * r, x + r, y + 0.3 * r), fill=color)
        pen.rectangle((x - 0.3 * r, y - r, x + 0.3 * r, y + r), fill=color)
    else:
        turns, inner = {"triangle": (3, 1.0), "diamond": (4, 1.0), "star": (5, 0.4)}[shape]
        step = math.pi / turns
        corners = []
        for i in range(2 * turns):
            if i % 2 and inner == 1.0:
                continue  # a plain polygon: only the outer corners
            radius = r if i % 2 == 0 else inner * r
            corners.append((x + radius * math.sin(i * step), y - radius * math.cos(i * step)))
        pen.polygon(corners, fill=color)


def questions(scene: Scene, rng: np.random.Generator, count: int) -> list[SceneQuestion]:
    """`count` questions about the scene, each kind equally likely, in random order."""
    return [_question(scene, rng) for _ in range(count)]


def _question(scene: Scene, rng: np.random.Generator) -> SceneQuestion:
    thing = scene.things[int(rng.integers(len(scene.things)))]
    kind = int(rng.integers(6))
    if kind == 0:
        text, answer = f"what color is the shape in the {PLACES[thing.cell]}?", thing.color
    elif kind == 1:
        text, answer = f"what shape is in the {PLACES[thing.cell]}?", thing.shape
    elif kind == 2:
        cell = thing.cell if rng.random() < 0.7 else int(rng.integers(GRID * GRID))
        there = scene.at(cell)
        text, answer = f"what is in the {PLACES[cell]}?", f"a {there.color} {there.shape}" if there else "nothing"
    elif kind == 3:
        text, answer = f"what shape is the {thing.color} one?", thing.shape
    elif kind == 4 and sum(t.shape == thing.shape for t in scene.things) == 1:
        text, answer = f"what color is the {thing.shape}?", thing.color
    else:  # also where a shape's colour would be ambiguous
        text, answer = f"where is the {thing.color} {thing.shape}?", PLACES[thing.cell]
    return SceneQuestion(f"Question: {text} Answer:", answer)


@dataclass(frozen=True)
class Example:
    """One image with one question about it."""

    scene: Scene
    image: Image.Image
    question: SceneQuestion


def examples(count: int, seed: int, split: Split = "held-out", per_image: int = 1) -> Iterator[Example]:
    """`count` examples, the same ones for the same seed; `per_image` consecutive ones share an image."""
    rng = np.random.default_rng(seed)
    made = 0
    while made < count:
        scene = random_scene(rng, split)
        image = draw(scene, rng)
        for question in questions(scene, rng, min(per_image, count - made)):
            yield Example(scene, image, question)
            made += 1
