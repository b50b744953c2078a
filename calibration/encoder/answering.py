"""Questions asked with a vision encoder that keeps more or fewer image tokens: how right each answer is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from catp.calibration.accuracy.answering import in_batches, read_images, read_prompt
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.metrics import JUDGES, Metric
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import to_host


@dataclass(frozen=True)
class Asked:
    """A pipeline, and what its vision encoder keeps."""

    pipeline: Pipeline
    wish: EncoderWish

    @property
    def one_by_one(self) -> bool:
        """In the dynamic form, pictures of a batch would decide how many tokens each other keeps."""
        pruning = self.pipeline.manifest.encoder_pruning
        return pruning is not None and pruning.form == "dynamic"


@dataclass(frozen=True)
class Answered:
    """Every question in every setting."""

    right: np.ndarray  # float64 [Q, S], from 0 to 1
    images: tuple[str, ...]  # of each question
    gflops: np.ndarray  # float64 [S], of the vision encoder, mean over pictures
    skipped: int


def answer_all(
    questions: Iterable[VqaExample],
    settings: Sequence[Asked],
    metric: Metric,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Answered:
    """Ask every question in every setting, greedily; a picture is encoded once in each.

    Args:
        advance: called with the number of questions just done.

    Raises:
        UsageError: an encoder can't keep what is asked.
        CatpError: no question could be asked.
    """
    judge = JUDGES[metric]
    rows: list[list[float]] = []
    images: list[str] = []
    skipped = 0
    work = [Work(asked) for asked in settings]
    for batch in in_batches(questions, batch_size):
        first = settings[0].pipeline
        pixels, errors = read_images(first, batch)
        prompts, unread = zip(*(read_prompt(first, question) for question in batch))
        sound = [row for row, question in enumerate(batch) if question.image_key not in errors and unread[row] is None]
        skipped += len(batch) - len(sound)
        columns = []
        for of_setting in work:
            texts = of_setting.answer(
                np.concatenate(list(pixels.values())) if pixels else np.empty(0),
                [list(pixels).index(batch[row].image_key) for row in sound],
                [prompts[row] for row in sound],
                batch_size,
            )
            columns.append([judge(text, batch[row].answers) for text, row in zip(texts, sound)])
        rows += [list(row) for row in zip(*columns)]
        images += [batch[row].image_key for row in sound]
        advance(len(batch))
    if not rows:
        raise CatpError(f"none of {skipped} questions could be asked; catp-eval on the same data says why")
    return Answered(np.array(rows), tuple(images), np.array([of.gflops for of in work]), skipped)


class Work:
    """One setting on its way: its answers, and what its encoder has done."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._gflops: list[float] = []

    @property
    def gflops(self) -> float:
        """Work of the encoder, mean over the pictures so far; 0 of one that prunes nothing."""
        return float(np.mean(self._gflops)) if self._gflops else 0.0

    def answer(
        self, pixels: np.ndarray, image_of: Sequence[int], prompts: Sequence[Sequence[int]], batch_size: int
    ) -> list[str]:
        """Answers in the order of the prompts.

        Args:
            pixels: float32 [B, 3, H, W].
            image_of: of each prompt, its row of `pixels`.
        """
        pipeline = self.asked.pipeline
        found: dict[int, str] = {}
        size = 1 if self.asked.one_by_one else batch_size
        for start in range(0, len(pixels), size):
            part = range(start, min(start + size, len(pixels)))
            encoded = pipeline.encode(pixels[part.start : part.stop], encoder=self.asked.wish)
            self._count(encoded, len(part))
            pruned = pipeline.prune(encoded, pipeline.num_kept())
            rows = [row for row, image in enumerate(image_of) if image in part]
            for first in range(0, len(rows), batch_size):
                asked = rows[first : first + batch_size]
                generation = pipeline.decode(
                    pruned, [prompts[row] for row in asked], images=[image_of[row] - start for row in asked]
                )
                found.update((row, pipeline.detokenize(ids)) for row, ids in zip(asked, generation.token_ids))
        return [found[row] for row in range(len(prompts))]

    def _count(self, encoded: Encoded, pictures: int) -> None:
        spec = self.asked.pipeline.manifest.encoder_pruning
        if spec is None:
            return
        wish = self.asked.wish
        counts = to_host(encoded["kept_counts"]).tolist() if self.asked.one_by_one else wish.schedule(spec)
        self._gflops += [spec.gflops(counts)] * pictures


def check_encoder(pipeline: Pipeline, command: str) -> None:
    """Raises UsageError where a bundle has no encoder whose tokens could be chosen."""
    manifest = pipeline.manifest
    if manifest.encoder_pruning is None:
        raise UsageError(
            f"{command}: the vision encoder of {pipeline.bundle.path} ({manifest.model.family}) prunes nothing; export "
            "it with --encoder-flops"
        )
