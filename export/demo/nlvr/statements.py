"""Statements about two scenes, and which are true: of each kind and pair as many true as false ones.

The first scene is the left picture, the second one the right picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from catp.export.demo.scenes import COLORS, PLACES, SHAPES, Scene, Split, random_scene

SIDES = ("left", "right")
NUMBERS = ("no", "one", "two", "three", "four", "five")
WORDS = (
    "both pictures have a exactly one picture has the left right no there is in of more shapes than same number "
    "two three four five shape picture"
)

Kind = Literal["both", "exactly one", "one side", "side part", "neither", "counts", "number", "color", "shape", "place"]
Choices = tuple[list[str], list[str]]
"""False statements and true ones."""


@dataclass(frozen=True)
class Pair:
    """Two scenes, by their places in a pool of pictures."""

    first: int
    second: int


@dataclass(frozen=True)
class Judged:
    """A statement about a pair, and whether it is true."""

    text: str
    truth: bool
    kind: Kind


def pool_of_scenes(count: int, seed: int, split: Split) -> list[Scene]:
    """Scenes of a split, the same ones for the same seed."""
    rng = np.random.default_rng([seed, split == "train"])
    return [random_scene(rng, split) for _ in range(count)]


class Pairs:
    """Pairs of a pool's scenes that often share a thing, a colour or a number: then statements are hard to judge."""

    def __init__(self, scenes: Sequence[Scene]) -> None:
        self._scenes = scenes
        self._with: dict[tuple[str, ...], list[int]] = {}
        for place, scene in enumerate(scenes):
            keys = {key for thing in scene.things for key in ((thing.color, thing.shape), (thing.shape,))}
            for key in [*sorted(keys), (str(len(scene.things)),)]:
                self._with.setdefault(key, []).append(place)

    def draw(self, rng: np.random.Generator) -> Pair:
        first = int(rng.integers(len(self._scenes)))
        scene, way = self._scenes[first], rng.random()
        thing = scene.things[int(rng.integers(len(scene.things)))]
        key: tuple[str, ...] = (thing.color, thing.shape)
        if way > 0.55:
            key = (str(len(scene.things)),) if way > 0.75 else (thing.shape,)
        near = self._with[key] if way < 0.9 else range(len(self._scenes))
        return Pair(first, int(near[int(rng.integers(len(near)))]))


def judged(rng: np.random.Generator, first: Scene, second: Scene, count: int) -> list[Judged]:
    """`count` statements about two scenes: first its kind is chosen, then whether it is true, then its words."""
    choices = {kind: both for kind, both in statements(first, second).items() if all(both)}
    kinds = sorted(choices)
    found = []
    for _ in range(count):
        kind, truth = kinds[int(rng.integers(len(kinds)))], int(rng.integers(2))
        among = choices[kind][truth]
        found.append(Judged(among[int(rng.integers(len(among)))], bool(truth), kind))
    return found


def statements(first: Scene, second: Scene) -> dict[Kind, Choices]:
    """All statements about a pair, by kind. False ones speak of what is in one of the pictures, or almost is."""
    scenes = (first, second)
    things = [{(thing.color, thing.shape) for thing in scene.things} for scene in scenes]
    either, both, one = things[0] | things[1], things[0] & things[1], things[0] ^ things[1]
    # Of a colour that is there, the shapes that it has in neither picture.
    almost = {(color, shape) for color, _ in either for shape in SHAPES} - either
    found: dict[Kind, Choices] = {
        "both": (_of("both pictures have a {}", one), _of("both pictures have a {}", both)),
        "exactly one": (_of("exactly one picture has a {}", both), _of("exactly one picture has a {}", one)),
        "neither": (_of("no picture has a {}", either), _of("no picture has a {}", almost)),
        "counts": _compared(*(len(scene.things) for scene in scenes)),
        "one side": ([], []),
        "side part": ([], []),
        "number": ([], []),
        "place": ([], []),
        "color": _shared([{color for color, _ in seen} for seen in things], COLORS, "a {} shape"),
        "shape": _shared([{shape for _, shape in seen} for seen in things], SHAPES, "a {}"),
    }
    for side, scene, seen, other in zip(SIDES, scenes, things, reversed(things)):
        says = f"the {side} picture has a {{}}"
        _add(found["one side"], _of(says, (other | almost) - seen), _of(says, seen))
        for known, place, what in ((COLORS, 0, "{} shape"), (SHAPES, 1, "{}")):
            there = {thing[place] for thing in seen}
            parts = (set(known) - there, there)
            _add(found["side part"], *([says.format(what.format(word)) for word in sorted(part)] for part in parts))
        numbers = {count: f"the {side} picture has {NUMBERS[count]} shapes" for count in range(2, 6)}
        right = numbers.pop(len(scene.things))
        _add(found["number"], list(numbers.values()), [right])
        where = {(f"{thing.color} {thing.shape}", PLACES[thing.cell]) for thing in scene.things}
        wrong = {(what, place) for what, _ in where for _, place in where} - where
        says = f"there is a {{}} in the {{}} of the {side} picture"
        _add(found["place"], *([says.format(*pair) for pair in sorted(pairs)] for pairs in (wrong, where)))
    return found


def _of(says: str, things: set[tuple[str, str]]) -> list[str]:
    return [says.format(f"{color} {shape}") for color, shape in sorted(things)]


def _shared(seen: Sequence[set[str]], known: Iterable[str], what: str) -> Choices:
    """Whether both pictures have a colour or a shape, or only one."""
    shared, other = (sorted(found) for found in (seen[0] & seen[1], set(known) - (seen[0] & seen[1])))
    says = f"both pictures have {what}"
    return [says.format(word) for word in other], [says.format(word) for word in shared]


def _compared(first: int, second: int) -> Choices:
    says = [
        "the left picture has more shapes than the right picture",
        "the right picture has more shapes than the left picture",
        "both pictures have the same number of shapes",
    ]
    right = 2 if first == second else int(second > first)
    return says[:right] + says[right + 1 :], [says[right]]


def _add(choices: Choices, wrong: list[str], right: list[str]) -> None:
    choices[0].extend(wrong)
    choices[1].extend(right)
