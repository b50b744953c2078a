"""Questions to predictions: every setting's answer, from one run of vision encoder and Q-Former per image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from catp.calibration.accuracy.asking import USUAL, Asking
from catp.calibration.accuracy.choice import kept_tokens, random_scores
from catp.calibration.accuracy.predictions import Prediction
from catp.calibration.accuracy.settings import RANDOM, Setting, score_outputs
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.metrics import JUDGES, Metric
from catp.runtime.bundle.manifest import Positions
from catp.runtime.errors import ImageError, UsageError
from catp.runtime.image_sides.query_tokens import Votes
from catp.runtime.pipeline import Pipeline

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
    """By image key, pixel_values [1, 3, H, W] (pairs: [2, 3, H, W]) or what is wrong; one picture is held at a time."""
    pixels: dict[str, np.ndarray] = {}
    errors: dict[str, str] = {}
    for question in batch:
        key = question.image_key
        if key not in pixels and key not in errors:
            try:
                pixels[key] = pipeline.preprocess(question.images)
            except ImageError as error:
                errors[key] = str(error)
    return pixels, errors


def read_prompt(pipeline: Pipeline, question: VqaExample, asking: Asking = USUAL) -> tuple[list[int], str | None]:
    """Token ids of a question's prompt, and why it can't be asked; None where it can."""
    manifest = pipeline.manifest
    prompt = asking.prompt(manifest, question)
    try:
        token_ids = pipeline.tokenize(prompt)
        pipeline.instruct([prompt])
    except UsageError as error:
        return [], str(error)
    if manifest.text.max_positions is None:
        return token_ids, None
    room = manifest.text.max_positions - (manifest.tokens if manifest.vote else 0)
    too_long = f"prompt of {len(token_ids)} tokens: this model takes {room}"
    return token_ids, too_long if len(token_ids) > room else None


def votes_about(
    pipeline: Pipeline,
    questions: Sequence[VqaExample],
    pixels: dict[str, np.ndarray],
    batch_size: int,
    asking: Asking = USUAL,
) -> tuple[Votes, np.ndarray]:
    """Votes, and int64 [B] the row of them that each question is about.

    A row for each image, or, where the Q-Former reads the question too, for each question.

    Args:
        pixels: by image key, as `read_images` has them.
        batch_size: rows at a time, at most, where there is one for each question.
    """
    image_of = {key: image for image, key in enumerate(pixels)}
    images = np.array([image_of[question.image_key] for question in questions])
    pictures = np.concatenate(list(pixels.values()))
    if not pipeline.manifest.reads_instruction:
        return pipeline.votes(pipeline.encode(pictures)), images
    prompts = [asking.prompt(pipeline.manifest, question) for question in questions]
    found = []
    for start in range(0, len(questions), batch_size):
        part = slice(start, start + batch_size)
        found.append(pipeline.votes(pipeline.encode(pictures[images[part]], prompts[part])))
    outputs = {name: np.concatenate([votes.outputs[name] for votes in found]) for name in found[0].outputs}
    return Votes(np.concatenate([votes.embeds for votes in found]), outputs), np.arange(len(questions))


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
        prompts, unread = zip(*(read_prompt(self._pipeline, question, self._asking) for question in batch))
        pixels, errors = read_images(self._pipeline, batch)
        reasons = [errors.get(q.image_key) or reason for q, reason in zip(batch, unread)]
        rows = [row for row, reason in enumerate(reasons) if reason is None]
        cases: list[list[Case]] = []
        answers: dict[Case, str] = {}
        if rows:
            questions = [batch[row] for row in rows]
            votes, images = votes_about(self._pipeline, questions, pixels, self._batch_size, self._asking)
            cases = self._cases(questions, votes, images)
            answers = self._decode(questions, [prompts[row] for row in rows], cases, votes, images)
        asked = iter(cases)
        return [
            Prediction(id=question.id, image_key=question.image_key, answer_type=question.answer_type, error=reason)
            if reason
            else self._predict(question, next(asked), answers)
            for question, reason in zip(batch, reasons)
        ]

    def _cases(self, questions: Sequence[VqaExample], votes: Votes, images: np.ndarray) -> list[list[Case]]:
        """For each question, its case in each setting.

        Args:
            images: int64 [B], the row of `votes` that each question is about.
        """
        scores = {
            method: np.stack([random_scores(self._seed, question.id, self._tokens) for question in questions])
            if method == RANDOM
            else votes.outputs[self._outputs[method]][images]
            for method in {setting.method for setting in self._settings}
        }
        cases: list[list[Case]] = [[] for _ in questions]
        for setting in self._settings:
            for row, kept in enumerate(kept_tokens(setting, scores[setting.method])):
                # With every token kept there are no gaps to close.
                positions = setting.positions if len(kept) < self._tokens else "original"
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
        most = self._asking.max_new_tokens
        limit = self._pipeline.manifest.text.max_new_tokens if most is None else most
        size = self._asking.rows(self._batch_size)
        alike: defaultdict[tuple[Positions, int], list[Case]] = defaultdict(list)
        for case in dict.fromkeys(case for row in cases for case in row):
            alike[case[1], len(case[2])].append(case)
        answers = {}
        for (positions, _), group in alike.items():
            for start in range(0, len(group), size):
                part = group[start : start + size]
                rows = [row for row, _, _ in part]
                generation = self._pipeline.decode(
                    votes.keep(np.array([kept for _, _, kept in part]), images[rows]),
                    [prompts[row] for row in rows],
                    limit,
                    positions,
                    self._asking.settings(self._seed, questions[rows[0]].id),
                )
                for case, ids in zip(part, generation.token_ids):
                    answers[case] = self._pipeline.detokenize(ids)
        return answers

    def _predict(self, question: VqaExample, cases: Sequence[Case], answers: dict[Case, str]) -> Prediction:
        texts = [answers[case] for case in cases]
        right = {text: self._judge(text, question.answers) for text in set(texts)}
        return Prediction(
            id=question.id,
            image_key=question.image_key,
            answer_type=question.answer_type,
            answers=tuple(texts),
            num_kept=tuple(len(kept) for _, _, kept in cases),
            accuracy=tuple(right[text] for text in texts),
        )
