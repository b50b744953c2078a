"""A scorer of image tokens, taught without labels by hiding patches from the Q-Former.

A patch matters as far as the query embeddings move when it is hidden; hidden from all others it would not, where others
show the same. So of each picture some patches are hidden, each on top of a random choice of the others, and a linear
map from a layer's tokens to the logarithm of the change is fitted by ridge regression.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from catp.calibration.data.dataset import VqaExample
from catp.export.checkpoints.loading import Checkpoint
from catp.export.checkpoints.residency import one_part_in_memory
from catp.export.checkpoints.taught import TaughtScorer
from catp.export.encoder_pruning.rules.taught import normalised
from catp.export.families.query_tokens import QueryTokens
from catp.export.verification.reference import Instructions, Reference
from catp.runtime.bundle.encoder_pruning import TaughtSpec
from catp.runtime.errors import CatpError, ImageError, UsageError
from catp.runtime.inputs.images import load_image
from catp.runtime.inputs.videos import frames_of

SHOWN = 0.6
"""Share of a picture's patches that are visible around the one that is hidden."""

HELD_BACK = 5
"""One picture in so many is kept from the fit, to say how good it is and how strong the ridge must be."""

RIDGES = tuple(10.0**power for power in range(-4, 3))
"""Tried, times the number of examples: features have variance 1."""

LEAST = 1e-12
"""Added to a change before its logarithm."""

SAVE_EVERY = 25
"""Pictures between states from which an interrupted run goes on."""


@dataclass
class Lessons:
    """Everything that was seen so far, as sums over examples: all that a linear fit needs, however many there were.

    Features x have a last one that is always 1. First axis: the examples to fit, and those held back; second: layers.
    """

    xx: np.ndarray  # float64 [2, L, W + 1, W + 1]
    xy: np.ndarray  # float64 [2, L, W + 1]
    yy: np.ndarray  # float64 [2]
    examples: np.ndarray  # int64 [2]
    pictures: int

    @classmethod
    def none(cls, layers: int, width: int) -> Lessons:
        shape = (2, layers, width + 1)
        return cls(np.zeros((*shape, width + 1)), np.zeros(shape), np.zeros(2), np.zeros(2, np.int64), 0)

    def add(self, features: np.ndarray, targets: np.ndarray) -> None:
        """One more picture. Args: features float64 [L, n, W], targets float64 [n]."""
        part = 1 if self.pictures % HELD_BACK == HELD_BACK - 1 else 0
        x = np.concatenate([features, np.ones((*features.shape[:2], 1))], 2)
        self.xx[part] += x.transpose(0, 2, 1) @ x
        self.xy[part] += targets @ x
        self.yy[part] += targets @ targets
        self.examples[part] += len(targets)
        self.pictures += 1

    def fit(self, layer: int) -> tuple[np.ndarray, float]:
        """Weights float64 [W + 1], and the share of the variance of held-back targets that they explain.

        The ridge is the one, of RIDGES, that explains most.
        """
        found = [self._fit(layer, ridge) for ridge in RIDGES]
        shares = [self._explained(layer, weights) for weights in found]
        best = int(np.argmax(shares))
        return found[best], shares[best]

    def _fit(self, layer: int, ridge: float) -> np.ndarray:
        penalty = ridge * self.examples[0] * np.eye(self.xy.shape[2])
        penalty[-1, -1] = 0  # the constant is not held small
        weights: np.ndarray = np.linalg.solve(self.xx[0, layer] + penalty, self.xy[0, layer])
        return weights

    def _explained(self, layer: int, weights: np.ndarray) -> float:
        """Below 0: worse than the mean."""
        xx, xy, yy = self.xx[1, layer], self.xy[1, layer], self.yy[1]
        left = yy - 2 * weights @ xy + weights @ xx @ weights
        return float(1 - left / max(yy - xy[-1] ** 2 / max(self.examples[1], 1), LEAST))

    def save(self, file: Path, settings: str) -> None:
        partial = file.with_name(f"{file.name}.new.npz")
        np.savez(partial, settings=np.array(settings), **vars(self))
        partial.replace(file)

    @classmethod
    def resume(cls, file: Path, settings: str) -> Lessons | None:
        """The state of an interrupted run with the same settings; None where there is none."""
        try:
            with np.load(file, allow_pickle=False) as state:
                if str(state["settings"]) != settings:
                    return None
                arrays = {name: state[name] for name in ("xx", "xy", "yy", "examples")}
                return cls(**arrays, pictures=int(state["pictures"]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):  # there is none, or a killed run's
            return None


def teach(
    checkpoint: Checkpoint,
    examples: Iterable[VqaExample],
    data: str,
    pictures: int,
    toggles: int,
    seed: int,
    state: Path,
    advance: Callable[[int], None],
) -> TaughtScorer:
    """Fit a scorer for every layer of the vision encoder.

    Args:
        examples: questions, each picture of which is looked at once, of a video one frame, as its frames are too alike
            to say how good a fit is; the question is what an instructed Q-Former reads.
        data: their name, for the record.
        pictures: how many are looked at, at most.
        toggles: patches hidden in each.
        state: a file from which an interrupted run with the same settings goes on; gone afterwards.
        advance: called with the number of pictures just done.

    Raises:
        UsageError: the checkpoint has no Q-Former.
        CatpError: too few pictures could be read.
    """
    model, family = checkpoint.model, checkpoint.family
    if not isinstance(family, QueryTokens):
        raise UsageError(
            f"model {checkpoint.id}: {family.name} has no Q-Former to hide patches from; accepted: BLIP-2, InstructBLIP"
        )
    config = model.config.vision_config
    layers = config.num_hidden_layers
    settings = json.dumps([checkpoint.id, checkpoint.revision, checkpoint.adapter, data, pictures, toggles, seed])
    lessons = Lessons.resume(state, settings) or Lessons.none(layers, config.hidden_size)
    reference, classroom = Reference(checkpoint), _Classroom(model, toggles)
    advance(lessons.pictures)
    with one_part_in_memory(model):
        for number, (image, question) in enumerate(_pictures(examples, pictures, seed, family.frames is not None)):
            if number < lessons.pictures:
                continue
            rng = np.random.default_rng([seed, number])
            features, targets = classroom.lesson(
                reference.pixel_values([image]), reference.instructions([question]), rng
            )
            lessons.add(features, targets)
            if lessons.pictures % SAVE_EVERY == 0:
                lessons.save(state, settings)
            advance(1)
    if lessons.pictures < 2 * HELD_BACK:
        raise CatpError(
            f"data {data}: {lessons.pictures} pictures could be read; give at least {2 * HELD_BACK}, better 300"
        )
    fits = [lessons.fit(layer) for layer in range(layers)]
    record = TaughtSpec(
        data=data,
        pictures=lessons.pictures,
        toggles=toggles,
        seed=seed,
        explained=tuple(max(-1.0, round(share, 4)) for _, share in fits),
    )
    state.unlink(missing_ok=True)
    # The constant changes no order.
    return TaughtScorer(torch.from_numpy(np.stack([weights[:-1] for weights, _ in fits])).float(), record)


def _pictures(examples: Iterable[VqaExample], count: int, seed: int, videos: bool) -> Iterator[tuple[Image.Image, str]]:
    """Each picture once, with the first question about it; those that can't be read are left out.

    Args:
        videos: whether examples are about videos, of each of which a frame is drawn by `seed`.
    """
    seen: set[str] = set()
    for example in examples:
        if len(seen) == count:
            return
        if example.image_key in seen:
            continue
        try:
            frames = frames_of(example.image) if videos else (example.image,)
            # The number beside the seed and the picture's keeps it apart from the draws of its lesson.
            drawn = frames[np.random.default_rng([seed, len(seen), 1]).integers(len(frames))]
            image = drawn if isinstance(drawn, Image.Image) else load_image(drawn)
        except (ImageError, UsageError):  # an empty folder is a matter of what is given
            continue
        seen.add(example.image_key)
        yield image, example.question


class _Classroom:
    """A model whose Q-Former can be shown some patches of a picture alone."""

    def __init__(self, model: Any, toggles: int) -> None:
        self.model, self.toggles = model, toggles
        self.layers = model.vision_model.encoder.layers

    @torch.no_grad()
    def lesson(
        self, pixel_values: torch.Tensor, instructions: Instructions | None, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """By layer the normalised tokens of the hidden patches, float64 [L, toggles, W], and the logarithm of how far
        the query embeddings moved, float64 [toggles]."""
        with self._tokens() as tokens:
            embeds = self.model.vision_model(pixel_values).last_hidden_state
        patches = embeds.shape[1] - 1
        hidden = rng.integers(patches, size=self.toggles)
        shown = rng.random((self.toggles, patches)).argsort(1) < round(SHOWN * patches)
        with_it, without = shown.copy(), shown.copy()
        with_it[np.arange(self.toggles), hidden] = True
        without[np.arange(self.toggles), hidden] = False
        visible = torch.from_numpy(np.concatenate([with_it, without]))
        queries = self._queries(
            embeds, torch.cat([torch.ones(len(visible), 1, dtype=torch.bool), visible], 1), instructions
        )
        moved = (queries[: self.toggles] - queries[self.toggles :]).flatten(1).norm(dim=1)
        features = np.stack([normalised(of_layer[0, 1:][hidden]).double().numpy() for of_layer in tokens])
        return features, np.log(moved.double().numpy() + LEAST)

    def _queries(self, embeds: torch.Tensor, visible: torch.Tensor, instructions: Instructions | None) -> torch.Tensor:
        """Query embeddings [R, N, Dq] of a picture [1, I, Dv] of which each row shows other tokens, bool [R, I]."""
        model, rows = self.model, len(visible)
        queries = model.query_tokens.expand(rows, -1, -1)
        read: dict[str, torch.Tensor] = {}
        if instructions is not None:
            mask = torch.cat([torch.ones(queries.shape[:2], dtype=torch.long), instructions.mask.expand(rows, -1)], 1)
            read = {"input_ids": instructions.ids.expand(rows, -1), "attention_mask": mask}
        found: torch.Tensor = model.qformer(
            query_embeds=queries,
            encoder_hidden_states=embeds.expand(rows, -1, -1),
            encoder_attention_mask=visible.long(),
            **read,
        ).last_hidden_state
        return found[:, : queries.shape[1]]

    @contextmanager
    def _tokens(self) -> Iterator[list[torch.Tensor]]:
        """By layer the tokens between attention and MLP, [1, 1+N, W]: what rules score."""
        found: list[torch.Tensor] = []
        hooks = [
            layer.layer_norm2.register_forward_pre_hook(lambda _, given: found.append(given[0]))
            for layer in self.layers
        ]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()
