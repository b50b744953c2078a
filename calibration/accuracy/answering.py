"""Questions to predictions: every setting's answer, from one run of vision encoder and Q-Former per image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat

import numpy as np

from catp.calibration.accuracy.asking import USUAL, Asking
from catp.calibration.accuracy.choice import kept_tokens, random_scores
from catp.calibration.accuracy.predictions import Prediction
from catp.calibration.accuracy.settings import RANDOM, Setting, score_outputs
from catp.calibration.accuracy.writing import write_answers
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.metrics import JUDGES, Metric
from catp.runtime.bundle.manifest import Manifest, Positions
from catp.runtime.errors import ImageError, UsageError
from catp.runtime.image_sides.query_tokens import Votes
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.pipeline import Pipeline
from catp.runtime.pruning import joined_frames
from catp.runtime.questions import frames_by_row

Case = tuple[int, Positions, tuple[int, ...]]
"""What decides an answer: a question of the batch, the position mode, the tokens kept. Settings may share one."""


def in_batches(questions: Iterable[VqaExample], size: int) -> Iterator[list[VqaExample]]:
    """Batches that end with the image that fills them: at least `size` questions, and never half an image's."""
    batch: list[VqaExample] = []
    for question in questions:
        if len(batch) >= size and question.image_key != batch[-1].image_key:
            yield batch
            batch = []
        batch.append(question)
    if batch:
        yield batch


def read_images(pipeline: Pipeline, batch: Sequence[VqaExample]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """By image key, pixel_values [1, 3, H, W] (pairs: [2, 3, H, W], videos: [F, 3, H, W]) or what is wrong.

    One picture, or video, is held at a time.
    """
    pixels: dict[str, np.ndarray] = {}
    errors: dict[str, str] = {}
    for question in batch:
        key = question.image_key
        if key not in pixels and key not in errors:
            try:
                pixels[key] = pipeline.preprocess(pictures_of(pipeline.manifest, question))
            except ImageError as error:
                errors[key] = str(error)
    return pixels, errors


def pictures_of(manifest: Manifest, question: VqaExample) -> Sequence[ImageSource]:
    """One, two, or the frames of a video, for whose model a picture is a video of one frame.

    Raises:
        ImageError: a video can't be read, or there is none.
    """
    if manifest.model.frames is None:
        return question.images
    try:
        (frames,) = frames_by_row(manifest, question.images)
    except UsageError as error:
        raise ImageError(str(error)) from None
    return frames


def frames_in(pipeline: Pipeline, pixel_values: np.ndarray | None) -> int:
    """Frames of a question's video, at least one; 1 of a model of images, whatever one question is about."""
    return 1 if pipeline.manifest.model.frames is None or pixel_values is None else len(pixel_values)


def read_prompt(
    pipeline: Pipeline, question: VqaExample, asking: Asking = USUAL, frames: int = 1
) -> tuple[list[int], str | None]:
    """Token ids of a question's prompt, and why it can't be asked; None where it can.

    Args:
        frames: of its video.
    """
    manifest = pipeline.manifest
    prompt = asking.prompt(manifest, question)
    try:
        token_ids = pipeline.tokenize(prompt)
        pipeline.instruct([prompt])
    except UsageError as error:
        return [], str(error)
    if manifest.text.max_positions is None:
        return token_ids, None
    room = max(0, manifest.text.max_positions - (manifest.tokens * frames if manifest.vote else 0))
    after = f" after {frames} frames" if frames > 1 else ""
    too_long = f"prompt of {len(token_ids)} tokens{after}: this model takes {room}"
    return token_ids, too_long if len(token_ids) > room else None


def votes_about(
    pipeline: Pipeline,
    questions: Sequence[VqaExample],
    pixels: dict[str, np.ndarray],
    batch_size: int,
    asking: Asking = USUAL,
) -> tuple[Votes, np.ndarray]:
    """Votes, and int64 [B] the row of them that each question is about.

    A row for each image, or, where the Q-Former reads the question too, for each question: of a video, with the tokens
    of all frames.

    Args:
        questions: about videos of equally many frames, if they are about videos.
        pixels: by image key, as `read_images` has them.
        batch_size: images at a time, at most, where there is a row for each question; of a longer video all frames.
    """
    if not pipeline.manifest.reads_instruction:
        image_of = {key: image for image, key in enumerate(pixels)}
        images = np.array([image_of[question.image_key] for question in questions])
        return pipeline.votes(pipeline.encode(np.concatenate(list(pixels.values())))), images
    frames = frames_in(pipeline, pixels[questions[0].image_key])
    size = max(1, batch_size // frames)
    found = []
    for start in range(0, len(questions), size):
        part = questions[start : start + size]
        pictures = np.concatenate([pixels[question.image_key] for question in part])
        prompts = [asking.prompt(pipeline.manifest, question) for question in part for _ in range(frames)]
        found.append(pipeline.votes(pipeline.encode(pictures, prompts)).joined(frames))
    outputs = {name: np.concatenate([votes.outputs[name] for votes in found]) for name in found[0].outputs}
    return Votes(np.concatenate([votes.embeds for votes in found]), outputs, frames), np.arange(len(questions))


class Answerer:
    """Asks batches of questions.

    Args:
        settings: their methods are among the bundle's, see `check_methods`.
        seed: of random tokens.
        batch_size: rows that the language model gets at a time, at most.
        asking: the prompts, and how tokens of answers are chosen.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        settings: Sequence[Setting],
        metric: Metric,
        seed: int,
        batch_size: int,
        asking: Asking = USUAL,
    ) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._judge = JUDGES[metric]
        self._seed = seed
        self._batch_size = batch_size
        self._asking = asking
        self._outputs = score_outputs(pipeline.manifest)
        self._tokens = pipeline.manifest.tokens

    def answer(self, batch: Sequence[VqaExample]) -> list[Prediction]:
        """One prediction for each question; those that can't be asked say why.

        Raises:
            UsageError: the engines were built for one ratio, or for smaller batches.
        """
        pixels, errors = read_images(self._pipeline, batch)
        frames = [frames_in(self._pipeline, pixels.get(question.image_key)) for question in batch]
        read = (read_prompt(self._pipeline, *question) for question in zip(batch, repeat(self._asking), frames))
        prompts, unread = zip(*read)
        reasons = [errors.get(q.image_key) or reason for q, reason in zip(batch, unread)]
        alike: defaultdict[int, list[int]] = defaultdict(list)
        for row, reason in enumerate(reasons):
            if reason is None:
                alike[frames[row]].append(row)
        found: dict[int, Prediction] = {}
        for count, rows in alike.items():
            questions = [batch[row] for row in rows]
            votes, images = votes_about(self._pipeline, questions, pixels, self._batch_size, self._asking)
            cases = self._cases(questions, votes, images)
            answers = self._decode(questions, [prompts[row] for row in rows], cases, votes, images)
            for row, case in zip(rows, cases):
                found[row] = self._predict(batch[row], case, answers, count)
        return [
            Prediction(id=question.id, image_key=question.image_key, answer_type=question.answer_type, error=reason)
            if reason
            else found[row]
            for row, (question, reason) in enumerate(zip(batch, reasons))
        ]

    def _cases(self, questions: Sequence[VqaExample], votes: Votes, images: np.ndarray) -> list[list[Case]]:
        """For each question, its case in each setting.

        Args:
            images: int64 [B], the row of `votes` that each question is about.
        """
        frames, tokens = votes.frames, self._tokens
        ids = [f"{q.id} {frame}" if frame else q.id for q in questions for frame in range(frames)]
        scores = {
            method: np.stack([random_scores(self._seed, id, tokens) for id in ids])
            if method == RANDOM
            else votes.outputs[self._outputs[method]][images].reshape(len(ids), -1)
            for method in {setting.method for setting in self._settings}
        }
        cases: list[list[Case]] = [[] for _ in questions]
        for setting in self._settings:
            of_frames = kept_tokens(setting, scores[setting.method])
            for row, kept in enumerate(joined_frames(of_frames, frames, tokens)):
                # With every token kept there are no gaps to close.
                positions = setting.positions if len(kept) < frames * tokens else "original"
                cases[row].append((row, positions, tuple(kept.tolist())))
        return cases

    def _decode(
        self,
        questions: Sequence[VqaExample],
        prompts: Sequence[Sequence[int]],
        cases: Sequence[Sequence[Case]],
        votes: Votes,
        images: np.ndarray,
    ) -> dict[Case, str]:
        """The answer to every case, asked once; those that keep equally many tokens go through the model together."""
        size = self._asking.rows(self._batch_size)
        alike: defaultdict[tuple[Positions, int], list[Case]] = defaultdict(list)
        for case in dict.fromkeys(case for row in cases for case in row):
            alike[case[1], len(case[2])].append(case)
        answers: dict[Case, str] = {}
        for (positions, _), group in alike.items():
            for start in range(0, len(group), size):
                part = group[start : start + size]
                rows = [row for row, _, _ in part]
                pruned = votes.keep(np.array([kept for _, _, kept in part]), images[rows])
                asked, first = [prompts[row] for row in rows], questions[rows[0]].id
                texts = write_answers(self._pipeline, pruned, asked, self._asking, self._seed, first, positions)
                answers.update(zip(part, texts))
        return answers

    def _predict(
        self, question: VqaExample, cases: Sequence[Case], answers: dict[Case, str], frames: int
    ) -> Prediction:
        texts = [answers[case] for case in cases]
        right = {text: self._judge(text, question.answers) for text in set(texts)}
        return Prediction(
            id=question.id,
            image_key=question.image_key,
            answer_type=question.answer_type,
            answers=tuple(texts),
            num_kept=tuple(len(kept) for _, _, kept in cases),
            frames=frames,
            accuracy=tuple(right[text] for text in texts),
        )
