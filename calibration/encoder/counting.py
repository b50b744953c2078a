"""From a wanted share of the encoder's work to a temperature, and from that to a schedule: by the dynamic form."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from catp.calibration.data.dataset import VqaExample
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec
from catp.runtime.bundle.encoder_schedules import mean_schedule
from catp.runtime.errors import CatpError, ImageError, UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import to_host

LEAST, MOST = 1e-3, 1e3
"""Temperatures between which the wanted one is searched."""

GRID = 13
"""Temperatures tried first: the work that is left falls with the temperature, but not at every one."""

STEPS = 12
"""Halvings of the interval that they leave."""

CLOSE = 0.005
"""A share of the work that is met as nearly ends the search."""


@dataclass(frozen=True)
class Found:
    """A temperature, and what it leaves."""

    temperature: float
    share: float  # of the dense encoder's work, mean over pictures
    kept_tokens: tuple[int, ...]  # each layer's mean count
    pictures: int  # that were counted


def find_schedule(pipeline: Pipeline, questions: Iterable[VqaExample], share: float, pictures: int) -> Found:
    """The temperature at which pictures leave this share of the encoder's work on average, and their mean counts.

    The design of MADTP nudges its temperature in training; here it is searched for, on a grid and then by halving.

    Args:
        pipeline: of a bundle in the dynamic form.
        pictures: how many are looked at, at most.

    Raises:
        UsageError: no temperature leaves so little, or so much.
        CatpError: no picture can be read.
    """
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None and spec.form == "dynamic"
    pixels = _pictures(pipeline, questions, pictures)
    tried: dict[float, np.ndarray] = {}

    def left(temperature: float) -> float:
        if temperature not in tried:
            tried[temperature] = np.array([_counts(pipeline, picture, temperature) for picture in pixels])
        return float(np.mean([spec.gflops(row.tolist()) for row in tried[temperature]])) / spec.gflops_dense

    grid = np.geomspace(LEAST, MOST, GRID).tolist()
    # The hottest temperature of the grid that leaves more than the wanted work, and the one above it.
    low, high = None, None
    for temperature in grid:
        if left(temperature) > share:
            low, high = temperature, None
        elif high is None:
            high = temperature
    if low is None or high is None:
        shares = [left(temperature) for temperature in grid]
        raise UsageError(
            f"flops {share:g}: on these pictures MADTP leaves {min(shares):.2f} to {max(shares):.2f} of the encoder's "
            "work; give a share between them"
        )
    for _ in range(STEPS):
        middle = float(np.sqrt(low * high))
        found = left(middle)
        if abs(found - share) < CLOSE:
            break
        low, high = (middle, high) if found > share else (low, middle)
    best = min(tried, key=lambda temperature: abs(left(temperature) - share))
    return Found(best, left(best), fit(spec, tried[best], share), len(pixels))


def fit(spec: EncoderPruningSpec, counts: np.ndarray, share: float) -> tuple[int, ...]:
    """Mean counts, scaled a little where rounding, and layers that can't keep all, leave another share of the work.

    Args:
        counts: int64 [pictures, P].
    """
    schedules = []
    for scale in np.linspace(0.9, 1.1, 81):
        scaled = np.minimum(counts * scale, counts.max(0))
        try:
            schedules.append(spec.check(mean_schedule(spec, scaled.tolist())))
        except UsageError:  # scaled so far that a layer can't keep its count
            continue
    if not schedules:
        raise UsageError(f"flops {share:g}: so few tokens are left that no schedule keeps them; give a larger share")
    return min(schedules, key=lambda kept: abs(spec.gflops(kept) / spec.gflops_dense - share))


def _pictures(pipeline: Pipeline, questions: Iterable[VqaExample], most: int) -> list[np.ndarray]:
    """pixel_values float32 [1, 3, H, W] of the first pictures that can be read."""
    found: dict[str, np.ndarray] = {}
    for question in questions:
        if len(found) == most:
            break
        if question.image_key not in found:
            try:
                found[question.image_key] = pipeline.preprocess([question.image])
            except ImageError:
                continue
    if not found:
        raise CatpError("none of the pictures can be read; catp-eval on the same data says why")
    return list(found.values())


def _counts(pipeline: Pipeline, picture: np.ndarray, temperature: float) -> np.ndarray:
    """int64 [P]."""
    encoded = pipeline.encode(picture, encoder=EncoderWish(temperature=temperature))
    return to_host(encoded["kept_counts"])
