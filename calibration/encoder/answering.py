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
from catp.runtime.image_sides.query_tokens import Encoded, Pruned
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import to_host


@dataclass(frozen=True)
class Amount:
    """The query tokens that are kept after the encoder, by one of two; by neither: as many as the bundle says."""

    ratio: float | None = None
    keep_mass: float | None = None


@dataclass(frozen=True)
class Asked:
    """A pipeline, what its vision encoder keeps, and each amount of query tokens that answers come after."""

    pipeline: Pipeline
    wish: EncoderWish
    amounts: tuple[Amount, ...] = (Amount(),)

    @property
    def one_by_one(self) -> bool:
        """In the dynamic form, pictures of a batch would decide how many tokens each other keeps."""
        pruning = self.pipeline.manifest.encoder_pruning
        return pruning is not None and pruning.form == "dynamic"


@dataclass(frozen=True)
class Answered:
    """Every question in every setting: an encoder with one of its amounts, the amounts of the first encoder first."""

    right: np.ndarray  # float64 [Q, S], from 0 to 1
    images: tuple[str, ...]  # of each question
    gflops: np.ndarray  # float64 [S], of the vision encoder, mean over pictures
    skipped: int
    tokens_kept: np.ndarray | None = None  # float64 [S], query tokens, mean over pictures; None: nothing votes


def answer_all(
    questions: Iterable[VqaExample],
    settings: Sequence[Asked],
    metric: Metric,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Answered:
    """Ask every question in every setting, greedily; a picture is encoded once by each encoder.

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
        for of_encoder in work:
            by_amount = of_encoder.answer(
                np.concatenate(list(pixels.values())) if pixels else np.empty(0),
                [list(pixels).index(batch[row].image_key) for row in sound],
                [prompts[row] for row in sound],
                batch_size,
            )
            columns += [[judge(text, batch[row].answers) for text, row in zip(texts, sound)] for texts in by_amount]
        rows += [list(row) for row in zip(*columns)]
        images += [batch[row].image_key for row in sound]
        advance(len(batch))
    if not rows:
        raise CatpError(f"none of {skipped} questions could be asked; catp-eval on the same data says why")
    votes = all(asked.pipeline.manifest.vote is not None for asked in settings)
    return Answered(
        np.array(rows),
        tuple(images),
        np.array([of.gflops for of in work for _ in of.asked.amounts]),
        skipped,
        np.concatenate([of.tokens_kept for of in work]) if votes else None,
    )


class Work:
    """One encoder on its way: its answers, and what it and the vote after it have done."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self._gflops: list[float] = []
        self._kept: list[list[int]] = [[] for _ in asked.amounts]

    @property
    def gflops(self) -> float:
        """Work of the encoder, mean over the pictures so far; 0 of one that prunes nothing."""
        return float(np.mean(self._gflops)) if self._gflops else 0.0

    @property
    def tokens_kept(self) -> np.ndarray:
        """Tokens after the vote by each amount, mean over the pictures so far, float64 [A]."""
        return np.array([np.mean(kept) for kept in self._kept])

    def answer(
        self, pixels: np.ndarray, image_of: Sequence[int], prompts: Sequence[Sequence[int]], batch_size: int
    ) -> list[list[str]]:
        """Answers by each amount, in the order of the prompts.

        Args:
            pixels: float32 [B, 3, H, W].
            image_of: of each prompt, its row of `pixels`.
        """
        pipeline = self.asked.pipeline
        found: list[dict[int, str]] = [{} for _ in self.asked.amounts]
        size = 1 if self.asked.one_by_one else batch_size
        for start in range(0, len(pixels), size):
            part = range(start, min(start + size, len(pixels)))
            encoded = pipeline.encode(pixels[part.start : part.stop], encoder=self.asked.wish)
            self._count(encoded, len(part))
            for place, amount in enumerate(self.asked.amounts):
                for group, pruned in self._prune(encoded, len(part), amount):
                    self._kept[place] += [pruned.kept_indices.shape[1]] * len(group)
                    images = [start + image for image in group]
                    rows = [row for row, image in enumerate(image_of) if image in images]
                    for first in range(0, len(rows), batch_size):
                        asked = rows[first : first + batch_size]
                        about = [images.index(image_of[row]) for row in asked]
                        generation = pipeline.decode(pruned, [prompts[row] for row in asked], images=about)
                        answers = map(pipeline.detokenize, generation.token_ids)
                        found[place].update(zip(asked, answers))
        return [[answers[row] for row in range(len(prompts))] for answers in found]

    def _prune(self, encoded: Encoded, pictures: int, amount: Amount) -> list[tuple[list[int], Pruned]]:
        """Pictures that keep equally many tokens, together."""
        pipeline, vote = self.asked.pipeline, self.asked.pipeline.manifest.vote
        mass = amount.keep_mass
        if amount == Amount() and vote is not None:
            mass = vote.keep_mass
        if mass is not None:
            return pipeline.image_side.by_mass(encoded, mass)
        return [(list(range(pictures)), pipeline.prune(encoded, pipeline.num_kept(amount.ratio)))]

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
