"""Zero-shot classes: names in sentences become vectors, and pictures are compared with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from catp.runtime.errors import GraphError, UsageError
from catp.runtime.matching.base import Matching

TEMPLATE = "a photo of a {}"
"""The sentence that a class is named in where no other is given, CLIP's."""

ROWS = 32
"""Sentences that the text encoder reads at a time, at most."""


@dataclass(frozen=True)
class Classes:
    """The probability of each class, and the likeliest one."""

    label: str
    probabilities: dict[str, float]  # of all classes together 1, in the order in which they were given
    kept_indices: list[int]  # ascending, of image tokens

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def class_vectors(
    matching: Matching,
    tokenize: Callable[[str], list[int]],
    classes: Sequence[str],
    templates: Sequence[str],
    rows: int = ROWS,
) -> np.ndarray:
    """The vector of each class, float32 [C, Dt] of length 1: the mean of its sentences' vectors, as in CLIP's paper.

    Args:
        templates: sentences with {} where the class stands.

    Raises:
        UsageError: there are no classes or two of one name, a template without {}, or a sentence is too long.
    """
    check_classes(classes, templates)
    sentences = [tokenize(template.replace("{}", name)) for name in classes for template in templates]
    found = np.concatenate([matching.embed(sentences[at : at + rows]) for at in range(0, len(sentences), rows)])
    means = found.reshape(len(classes), len(templates), -1).mean(1)
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise GraphError("text_embedding", "the vectors of a class's sentences cancel each other")
    return means / lengths


def check_classes(classes: Sequence[str], templates: Sequence[str]) -> None:
    """Raises UsageError where there are no classes, two of one name, or a template that names none."""
    if not classes or not templates:
        raise UsageError(f"{len(classes)} classes and {len(templates)} templates: give at least one of each")
    if len(set(classes)) < len(classes):
        again = next(name for place, name in enumerate(classes) if name in classes[:place])
        raise UsageError(f"classes: {again[:40]!r} is there twice; name each once")
    for template in templates:
        if "{}" not in template:
            raise UsageError(
                f"template {template[:60]!r}: it has no {{}} where the class stands; accepted: {TEMPLATE!r}"
            )


def probabilities(vectors: np.ndarray, of_classes: np.ndarray, scale: float) -> np.ndarray:
    """float64 [B, C]: the softmax of scaled cosines.

    Args:
        vectors: float32 [B, Dt], of pictures, of length 1.
        of_classes: float32 [C, Dt], likewise.
        scale: the manifest's logit_scale.
    """
    logits = scale * (vectors.astype(np.float64) @ of_classes.astype(np.float64).T)
    powers: np.ndarray = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)
