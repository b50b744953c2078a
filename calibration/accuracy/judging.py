"""Statements about two images to predictions: true or false for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from catp.calibration.accuracy.answering import read_images, read_prompt
from catp.calibration.accuracy.asking import USUAL, Asking
from catp.calibration.accuracy.predictions import Prediction
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.fitting import judges_pairs
from catp.calibration.data.metrics import JUDGES, Metric
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError
from catp.runtime.matching.two_images import Verdict
from catp.runtime.pipeline import Pipeline


def check_asking(manifest: Manifest, asking: Asking) -> None:
    """Raises UsageError where more is asked of a bundle that judges statements than they are."""
    if judges_pairs(manifest) and asking != USUAL:
        raise UsageError(
            f"settings of generation, answers, prompt template: {manifest.model.family} judges statements as they "
            "are, and generates no text; leave these options out"
        )
    if asking.answers is not None and manifest.model.language != "question-answering":
        raise UsageError(
            f"--answers: answers of {manifest.model.family} can't be ranked; accepted: BLIP for question answering"
        )


def written(verdict: Verdict) -> str:
    """A verdict as data sets write it."""
    return "true" if verdict.true else "false"


class PairAnswerer:
    """Asks batches of statements, with all tokens that the bundle's encoder leaves."""

    def __init__(self, pipeline: Pipeline, metric: Metric) -> None:
        self._pipeline = pipeline
        self._judge = JUDGES[metric]

    def answer(self, batch: Sequence[VqaExample]) -> list[Prediction]:
        """One prediction for each statement; those that can't be asked say why."""
        pixels, errors = read_images(self._pipeline, batch)
        ids, unread = zip(*(read_prompt(self._pipeline, question) for question in batch))
        reasons = [errors.get(q.image_key) or reason for q, reason in zip(batch, unread)]
        rows = [row for row, reason in enumerate(reasons) if reason is None]
        texts: dict[int, str] = {}
        if rows:
            keys = list(pixels)
            together = np.concatenate([pair[place : place + 1] for place in (0, 1) for pair in pixels.values()])
            pair_of = [keys.index(batch[row].image_key) for row in rows]
            found = self._pipeline.judge_pixels(together, [ids[row] for row in rows], pair_of)
            texts = dict(zip(rows, map(written, found)))
        return [
            Prediction(id=q.id, image_key=q.image_key, answer_type=q.answer_type, error=reason)
            if reason is not None
            else self._predict(q, texts[row])
            for row, (q, reason) in enumerate(zip(batch, reasons))
        ]

    def _predict(self, question: VqaExample, text: str) -> Prediction:
        return Prediction(
            id=question.id,
            image_key=question.image_key,
            answer_type=question.answer_type,
            answers=(text,),
            num_kept=(self._pipeline.manifest.tokens,),
            accuracy=(self._judge(text, question.answers),),
        )
