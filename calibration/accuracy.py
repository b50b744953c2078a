"""Exact-match accuracy of a bundle over pruning ratios and position modes, through the exported graphs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from PIL import Image

from catp.runtime.manifest import Positions
from catp.runtime.pipeline import Pipeline


class Question(Protocol):
    """A prompt and the one answer that counts as right."""

    @property
    def prompt(self) -> str: ...
    @property
    def answer(self) -> str: ...


@dataclass(frozen=True)
class Score:
    """How many questions were answered right in one setting."""

    ratio: float
    positions: Positions
    num_kept: int
    right: int
    total: int

    @property
    def accuracy(self) -> float:
        return self.right / self.total

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson's score interval for a proportion, 95 % by default; sensible at 0 and 1 too."""
        n, p = self.total, self.accuracy
        center = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, center - half), min(1.0, center + half)


def evaluate(
    pipeline: Pipeline,
    examples: Iterable[tuple[Image.Image, Question]],
    ratios: Sequence[float],
    positions: Sequence[Positions],
    batch_size: int = 8,
    advance: Callable[[int], None] = lambda _: None,
) -> list[Score]:
    """Score every ratio in every position mode on the same examples.

    The image is encoded once for all settings. Examples are taken batch by batch, so memory does not grow with
    their number.

    Args:
        examples: pictures with questions.
        advance: called with the number of examples done.
    """
    right = {(ratio, mode): 0 for ratio in ratios for mode in positions}
    total = 0
    remaining = iter(examples)
    while batch := list(islice(remaining, batch_size)):
        questions = [question for _, question in batch]
        image_embeds = pipeline.encode(pipeline.preprocess([image for image, _ in batch]))
        prompts = [pipeline.tokenize(question.prompt) for question in questions]
        for ratio in ratios:
            pruned = pipeline.prune(image_embeds, pipeline.num_kept(ratio))
            for mode in positions:
                generation = pipeline.decode(pruned, prompts, pipeline.manifest.text.max_new_tokens, mode)
                for question, ids in zip(questions, generation.token_ids):
                    right[ratio, mode] += pipeline.detokenize(ids) == question.answer
        total += len(batch)
        advance(len(batch))
    return [Score(ratio, mode, pipeline.num_kept(ratio), count, total) for (ratio, mode), count in right.items()]
