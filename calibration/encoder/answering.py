"""Questions asked with a vision encoder that keeps more or fewer image tokens: how right each answer is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from catp.calibration.accuracy.answering import frames_in, in_batches, read_images, read_prompt
from catp.calibration.accuracy.asking import USUAL, Asking
from catp.calibration.accuracy.judging import written
from catp.calibration.accuracy.writing import write_answers
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.fitting import judges_pairs
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
    """A pipeline, what its vision encoder keeps, and what is left out of the query tokens after it."""

    pipeline: Pipeline
    wish: EncoderWish
    ratio: float | None = None  # None, and no share of the votes either: the bundle's default
    keep_mass: float | None = None

    @property
    def amount(self) -> Amount:
        return Amount(self.ratio, self.keep_mass)


@dataclass(frozen=True)
class Answered:
    """Every question in every setting."""

    right: np.ndarray  # float64 [Q, S], from 0 to 1
    images: tuple[str, ...]  # of each question
    gflops: np.ndarray  # float64 [S], of the vision encoder, mean over pictures
    skipped: int
    prompt_tokens: float = 0.0  # mean over the questions
    tokens_kept: np.ndarray | None = None  # float64 [S], query tokens, mean over pictures; None: nothing votes
    frames: float = 1.0  # of a video, mean over the questions
    texts: tuple[tuple[str, ...], ...] = ()  # [Q][S], the answers
    questions: tuple[VqaExample, ...] = ()  # [Q], those that were asked
    counts: tuple[tuple[int, ...] | None, ...] = ()  # [S], kept by each layer that prunes, mean; None: it is dense

    def beside(self, other: Answered) -> Answered:
        """The same questions in the settings of both."""
        assert self.images == other.images, "the same questions, of which the same ones can be asked"
        both = self.tokens_kept is not None and other.tokens_kept is not None
        return replace(
            self,
            right=np.hstack([self.right, other.right]),
            gflops=np.concatenate([self.gflops, other.gflops]),
            tokens_kept=np.concatenate([self.tokens_kept, other.tokens_kept]) if both else None,
            texts=tuple((*mine, *theirs) for mine, theirs in zip(self.texts, other.texts, strict=True)),
            counts=(*self.counts, *other.counts),
        )


@dataclass(frozen=True)
class Prompt:
    """One question about a picture or a video, ready to be asked."""

    image: int  # row of the batch's pictures, or videos
    text: str  # for a Q-Former that reads it
    token_ids: list[int]
    id: str = ""  # of the question


def answer_all(
    questions: Iterable[VqaExample],
    settings: Sequence[Asked],
    metric: Metric,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
    asking: Asking = USUAL,
    seed: int = 0,
) -> Answered:
    """Ask every question in every setting; a picture is encoded once for all settings of an encoder.

    Args:
        advance: called with the number of questions just done.
        asking: the prompts, and how tokens of answers are chosen.
        seed: of what is drawn.

    Raises:
        UsageError: an encoder can't keep what is asked.
        CatpError: no question could be asked.
    """
    judge = JUDGES[metric]
    rows: list[list[float]] = []
    written_by_row: list[tuple[str, ...]] = []
    questions_asked: list[VqaExample] = []
    lengths: list[int] = []
    frames: list[int] = []
    reasons: list[str] = []
    work = _by_encoder(settings, asking, seed)
    for batch in in_batches(questions, batch_size):
        pixels, errors = read_images(settings[0].pipeline, batch)
        reasons += [errors[question.image_key] for question in batch if question.image_key in errors]
        by_frames: defaultdict[int, list[str]] = defaultdict(list)
        for key, of_key in pixels.items():
            by_frames[frames_in(settings[0].pipeline, of_key)].append(key)
        for count, keys in by_frames.items():
            sound, prompts = [], []
            for question in (question for question in batch if question.image_key in keys):
                token_ids, reason = read_prompt(settings[0].pipeline, question, asking, count)
                if reason:
                    reasons.append(reason)
                    continue
                sound.append(question)
                text = asking.prompt(settings[0].pipeline.manifest, question)
                prompts.append(Prompt(keys.index(question.image_key), text, token_ids, question.id))
            if not sound:
                continue
            columns = np.empty((len(sound), len(settings)))
            answers: list[list[str]] = [[] for _ in settings]
            together = np.concatenate([pixels[key] for key in keys])
            for of_encoder, places in work:
                texts = of_encoder.answer(together, prompts, batch_size, count)
                for place, column in zip(places, texts):
                    columns[:, place] = [judge(text, question.answers) for text, question in zip(column, sound)]
                    answers[place] = column
            rows += columns.tolist()
            written_by_row += zip(*answers)
            questions_asked += sound
            lengths += [len(prompt.token_ids) for prompt in prompts]
            frames += [count] * len(sound)
        advance(len(batch))
    if not rows:
        why = f"the first: {reasons[0]}" if reasons else "halves share no image: ask about more pictures"
        raise CatpError(f"none of {len(reasons)} questions could be asked; {why}")
    gflops, kept = np.zeros(len(settings)), np.zeros(len(settings))
    counts: list[tuple[int, ...] | None] = [None] * len(settings)
    for of_encoder, places in work:
        gflops[places], kept[places] = of_encoder.gflops, of_encoder.tokens_kept
        for place in places:
            counts[place] = of_encoder.counts
    votes = all(asked.pipeline.manifest.vote is not None for asked in settings)
    return Answered(
        np.array(rows),
        tuple(question.image_key for question in questions_asked),
        gflops,
        len(reasons),
        float(np.mean(lengths)),
        kept if votes else None,
        float(np.mean(frames)),
        tuple(written_by_row),
        tuple(questions_asked),
        tuple(counts),
    )


def _by_encoder(settings: Sequence[Asked], asking: Asking, seed: int) -> list[tuple[Work, list[int]]]:
    """Settings that encode alike, and their places."""
    alike: defaultdict[tuple[int, EncoderWish], list[int]] = defaultdict(list)
    for place, asked in enumerate(settings):
        alike[id(asked.pipeline), asked.wish].append(place)
    return [
        (_work(settings[places[0]].pipeline, wish, [settings[place].amount for place in places], asking, seed), places)
        for (_, wish), places in alike.items()
    ]


def _work(pipeline: Pipeline, wish: EncoderWish, amounts: Sequence[Amount], asking: Asking, seed: int) -> Work:
    return (PairWork if judges_pairs(pipeline.manifest) else Work)(pipeline, wish, amounts, asking, seed)


class Work:
    """One encoder on its way: the answers after it by each of several amounts, and what it and the vote have done.

    Args:
        amounts: of query tokens that are kept.
        asking: how tokens of answers are chosen; prompts are given as they are.
        seed: of what is drawn.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        wish: EncoderWish,
        amounts: Sequence[Amount],
        asking: Asking = USUAL,
        seed: int = 0,
    ) -> None:
        self._pipeline = pipeline
        self._asking = asking
        self._seed = seed
        self._wish = wish
        self._amounts = amounts
        self._kept: list[list[float]] = [[] for _ in amounts]
        self._gflops: list[float] = []
        self._counts: list[tuple[int, ...]] = []
        pruning = pipeline.manifest.encoder_pruning
        # In the dynamic form, pictures of a batch would decide how many tokens each other keeps.
        self._one_by_one = pruning is not None and pruning.form == "dynamic"

    @property
    def gflops(self) -> float:
        """Work of the encoder, mean over the pictures so far; 0 of one that prunes nothing."""
        return float(np.mean(self._gflops)) if self._gflops else 0.0

    @property
    def counts(self) -> tuple[int, ...] | None:
        """Image tokens that each layer which prunes kept, mean over the pictures so far; None of a dense encoder."""
        return tuple(np.rint(np.mean(self._counts, axis=0)).astype(int).tolist()) if self._counts else None

    @property
    def tokens_kept(self) -> np.ndarray:
        """Tokens after the vote by each amount, mean over the pictures so far, of videos those of a frame, float64
        [A]."""
        return np.array([np.mean(kept) if kept else 0.0 for kept in self._kept])

    def answer(
        self, pixels: np.ndarray, prompts: Sequence[Prompt], batch_size: int, frames: int = 1
    ) -> list[list[str]]:
        """For each amount, answers in the order of the prompts.

        Args:
            pixels: float32 [B * frames, 3, H, W].
            batch_size: pictures that are encoded at a time, at most, of a longer video all frames; and rows that the
                language model gets.
            frames: of each video, which stand one after another; a picture is one.
        """
        pipeline = self._pipeline
        found: list[dict[int, str]] = [{} for _ in self._amounts]
        videos = pixels.reshape(-1, frames, *pixels.shape[1:])
        for rows, asked in self._calls(len(videos), prompts, max(1, batch_size // frames)):
            texts = [prompts[number].text for number, _ in asked for _ in range(frames)]
            pictures = videos[rows].reshape(-1, *pixels.shape[1:])
            encoded = pipeline.encode(pictures, texts if pipeline.manifest.reads_instruction else (), self._wish)
            self._count(encoded, len(pictures))
            for answers, amount, kept in zip(found, self._amounts, self._kept):
                for group, pruned in self._prune(encoded, len(rows), frames, amount):
                    kept += [pruned.kept_indices.shape[1] / frames] * len(group)
                    place = {row: number for number, row in enumerate(group)}
                    mine = [(number, place[row]) for number, row in asked if row in place]
                    size = self._asking.rows(batch_size)
                    for first in range(0, len(mine), size):
                        numbers, of_images = zip(*mine[first : first + size])
                        ids, question = [prompts[number].token_ids for number in numbers], prompts[numbers[0]].id
                        written_here = write_answers(
                            pipeline, pruned, ids, self._asking, self._seed, question, images=of_images
                        )
                        answers.update(zip(numbers, written_here))
        return [[answers[number] for number in range(len(prompts))] for answers in found]

    def _calls(
        self, pictures: int, prompts: Sequence[Prompt], batch_size: int
    ) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Pictures that are encoded at a time, and what is asked about them: numbers of prompts, rows of the call.

        Where votes depend on the question, a picture is encoded once for each.
        """
        if self._pipeline.manifest.reads_instruction:
            for start in range(0, len(prompts), batch_size):
                numbers = range(start, min(start + batch_size, len(prompts)))
                yield [prompts[number].image for number in numbers], [(number, number - start) for number in numbers]
            return
        size = 1 if self._one_by_one else batch_size
        for start in range(0, pictures, size):
            rows = list(range(start, min(start + size, pictures)))
            yield rows, [(n, prompt.image - start) for n, prompt in enumerate(prompts) if prompt.image in rows]

    def _prune(self, encoded: Encoded, images: int, frames: int, amount: Amount) -> list[tuple[list[int], Pruned]]:
        """Images, or videos of so many frames, that keep equally many tokens, together."""
        vote = self._pipeline.manifest.vote
        mass = vote.keep_mass if amount == Amount() and vote is not None else amount.keep_mass
        if mass is not None:
            return self._pipeline.image_side.by_mass(encoded, mass, frames)
        pruned = self._pipeline.prune(encoded, self._pipeline.num_kept(amount.ratio))
        return [(list(range(images)), pruned.joined(frames, self._pipeline.manifest.tokens))]

    def _count(self, encoded: Encoded, pictures: int) -> None:
        spec = self._pipeline.manifest.encoder_pruning
        if spec is None:
            return
        counts = to_host(encoded["kept_counts"]).tolist() if self._one_by_one else self._wish.schedule(spec)
        self._gflops += [spec.gflops(counts)] * pictures
        self._counts += [tuple(counts)] * pictures


class PairWork(Work):
    """The same of statements about two images: what is written is true or false, and nothing is left out after it."""

    def answer(
        self, pixels: np.ndarray, prompts: Sequence[Prompt], batch_size: int, frames: int = 1
    ) -> list[list[str]]:
        """As `Work.answer`; `pixels` has the two images of each pair one after the other."""
        pairs = len(pixels) // 2
        found: dict[int, str] = {}
        for rows, asked in self._calls(pairs, prompts, batch_size):
            if not asked:
                continue
            of_rows = pixels.reshape(pairs, 2, *pixels.shape[1:])[rows]
            together = np.concatenate([of_rows[:, 0], of_rows[:, 1]])
            ids = [prompts[number].token_ids for number, _ in asked]
            encoded = self._pipeline.encode(together, encoder=self._wish)
            verdicts = self._pipeline.judge_encoded(encoded, ids, [row for _, row in asked])
            found.update(zip((number for number, _ in asked), map(written, verdicts)))
            self._count(encoded, len(together))
        return [[found[number] for number in range(len(prompts))]] * len(self._amounts)


def check_encoder(pipeline: Pipeline, command: str) -> None:
    """Raises UsageError where a bundle has no encoder whose tokens could be chosen, or answers no questions."""
    manifest = pipeline.manifest
    if manifest.encoder_pruning is None:
        raise UsageError(
            f"{command}: the vision encoder of {pipeline.bundle.path} ({manifest.model.family}) prunes nothing; export "
            "it with --encoder-flops"
        )
    pairs = judges_pairs(manifest) and command == "catp-eval"
    if not (manifest.writes_text or pairs):
        raise UsageError(
            f"{command}: bundle {pipeline.bundle.path} is {manifest.model.family}, which generates no text; accepted: "
            "what answers questions about images"
        )
