"""Scores of a text in place of answers, by bundles that write none."""

from __future__ import annotations

import numpy as np
from PIL import Image

from catp.runtime.bundle.manifest import Positions
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.matching import Match
from catp.runtime.pipeline import Pipeline


def say_match(match: Match) -> str:
    """How well a text fits its image, in words."""
    similarity = f"similarity {match.similarity:.3f}"
    return similarity if match.probability is None else f"fits: {match.probability:.1%}, {similarity}"


def check_scored(pipeline: Pipeline, keep_mass: float | None, positions: Positions | None) -> None:
    """Raises UsageError where a bundle scores texts about two images, or what it can't be asked for is given."""
    manifest = pipeline.manifest
    if manifest.model.language == "two-images":
        raise UsageError(
            f"bundle {pipeline.bundle.path} is {manifest.model.family}, which reads two images, and one is drawn; "
            "accepted: what reads one image"
        )
    for option, value in (("keep mass", keep_mass), ("positions", positions)):
        if value is not None:
            raise UsageError(
                f"{option} {value}: the bundle is {manifest.model.family}, which scores texts after equally many "
                "tokens each; leave it out"
            )


def score_twice(
    pipeline: Pipeline, picture: Image.Image, text: str, ratio: float | None, encoder: EncoderWish
) -> tuple[str, str, np.ndarray]:
    """The score of a text with the tokens kept at a ratio (None: the bundle's), that with all, and the kept indices
    int64 [k], ascending."""
    (kept,) = pipeline.match([picture], [text], ratio, encoder)
    (full,) = pipeline.match([picture], [text], 0, encoder)
    return say_match(kept), say_match(full), np.array(kept.kept_indices)
