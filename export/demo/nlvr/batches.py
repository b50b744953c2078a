"""Tensors of pairs of pictures and statements about them."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from catp.export.demo.nlvr.pool import Pool
from catp.export.demo.scenes import COLORS, PLACES, SHAPES, Scene
from catp.export.demo.vqa.untrained import CLS, PAD, SEP
from catp.runtime.bundle.image_spec import ImageSpec
from catp.runtime.inputs.images import preprocess


@dataclass(frozen=True)
class Batch:
    """P pairs with Q statements each."""

    first: torch.Tensor  # int64 [P], places in the pool
    second: torch.Tensor  # int64 [P]
    ids: torch.Tensor  # int64 [P * Q, S], padded
    mask: torch.Tensor  # int64 [P * Q, S]
    truth: torch.Tensor  # int64 [P * Q]
    shown: torch.Tensor  # int64 [P, 2, C, 2]: shape and cell of each colour in each picture, or one past the last
    count: torch.Tensor  # int64 [P, 2]: things in each picture


def pixel_values(pool: Pool, places: Iterable[int], spec: ImageSpec, turn: int = 0) -> torch.Tensor:
    """float32 [B, 3, H, W] of a pool's pictures."""
    return torch.from_numpy(preprocess([pool.picture(int(place), turn) for place in places], spec))


def make_batch(pool: Pool, tokenizer: Any, pairs: int, statements: int) -> Batch:
    rows = [pool.draw(statements) for _ in range(pairs)]
    token_ids = [[CLS, *_words(tokenizer, said.text), SEP] for _, all_said in rows for said in all_said]
    ids = torch.full((len(token_ids), max(map(len, token_ids))), PAD)
    for row, found in enumerate(token_ids):
        ids[row, : len(found)] = torch.tensor(found)
    return Batch(
        torch.tensor([pair.first for pair, _ in rows]),
        torch.tensor([pair.second for pair, _ in rows]),
        ids,
        (ids != PAD).long(),
        torch.tensor([int(said.truth) for _, all_said in rows for said in all_said]),
        torch.stack([_shown(pool.scenes[place]) for pair, _ in rows for place in (pair.first, pair.second)]).unflatten(
            0, (pairs, 2)
        ),
        torch.tensor([[len(pool.scenes[place].things) for place in (pair.first, pair.second)] for pair, _ in rows]),
    )


def _shown(scene: Scene) -> torch.Tensor:
    """int64 [C, 2]: shape and cell of each colour, which is in a scene once at most."""
    table = torch.tensor([[len(SHAPES), len(PLACES)]] * len(COLORS))
    for thing in scene.things:
        table[list(COLORS).index(thing.color)] = torch.tensor([SHAPES.index(thing.shape), thing.cell])
    return table


@functools.lru_cache(maxsize=50_000)
def _words(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)
