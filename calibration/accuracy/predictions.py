"""The predictions of an evaluation as a JSONL file, so that a run that was killed goes on where it stopped.

The first line says what decides the answers, every other line is one question in the order of the data set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from catp.calibration.accuracy.lines import LinesFile
from catp.calibration.accuracy.settings import Grid
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.metrics import Metric
from catp.runtime.bundle.generation_settings import GREEDY, GenerationSettings
from catp.runtime.bundle.manifest import Positions


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Evaluation(_Line):
    """An evaluation: all that decides the answers."""

    bundle: str  # sha256 of its manifest, which has that of every file
    provider: str
    engines: str | None
    data: str
    metric: Metric
    limit: int | None
    fraction: float | None
    seed: int
    questions: int
    digest: str  # of questions and answers, sha256
    methods: tuple[str, ...]
    ratios: tuple[float, ...]
    keep_masses: tuple[float, ...]
    positions: tuple[Positions, ...]
    prompt_template: str | None = None  # none: not recorded, as before there was a choice
    generation: GenerationSettings = GREEDY  # the seed of what is drawn is the evaluation's
    max_new_tokens: int | None = None  # none: the bundle's
    answers: str | None = None  # those that are ranked, sha256; none: answers are generated

    @property
    def grid(self) -> Grid:
        return Grid(self.methods, self.ratios, self.positions, self.keep_masses)

    def differences(self, other: Evaluation) -> list[str]:
        """In words, what `other` has that this one hasn't."""
        found = [name for name, here in self if getattr(other, name) != here]
        if set(found) & {"data", "limit", "fraction", "seed"}:  # which is why the questions are others
            found = [name for name in found if name not in ("metric", "questions", "digest")]
        return [in_words(name, getattr(other, name), getattr(self, name)) for name in found]


def in_words(name: str, there: object, here: object) -> str:
    """A field of a first line that differs from a file's."""
    sums = {"bundle": "another bundle", "digest": "other questions or answers", "answers": "other answers to rank"}
    if name in sums:  # of two sums nobody learns more than that they differ
        return sums[name]
    if isinstance(there, GenerationSettings) and isinstance(here, GenerationSettings):
        there, here = there.describe(), here.describe()
    if name == "prompt_template":
        there, here = ("none" if text is None else json.dumps(text, ensure_ascii=False) for text in (there, here))
    words = [(", ".join(map(str, v)) if isinstance(v, tuple) else str(v)) or "none" for v in (there, here)]
    return f"{name.replace('_', ' ')} {words[0].replace('None', 'none')}, not {words[1].replace('None', 'none')}"


class _Header(_Line):
    kind: Literal["catp-eval predictions"] = "catp-eval predictions"
    schema_version: Literal[1] = 1
    evaluation: Evaluation

    def differences(self, other: bytes) -> list[str]:
        """In words, what another file's evaluation has that this one hasn't."""
        return self.evaluation.differences(_Header.model_validate_json(other).evaluation)


class Prediction(_Line):
    """The answers to one question; the lists follow the settings of the evaluation's grid."""

    id: str
    image_key: str
    answer_type: str
    answers: tuple[str, ...] = ()
    num_kept: tuple[int, ...] = ()
    frames: int = 1  # of its video, which all of these tokens are of
    accuracy: tuple[float, ...] = ()
    error: str | None = None  # why it was not asked; then the lists are empty


class PredictionsFile(LinesFile):
    """The file of an evaluation, and the predictions in it.

    Args:
        path: written where it doesn't exist or is empty.

    Raises:
        UsageError: it is another file, or the predictions of another evaluation; the message names what differs.
        CatpError: it can't be written.
    """

    def __init__(self, path: Path, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self._columns = len(evaluation.grid.settings())
        super().__init__(path, _Header(evaluation=evaluation), "predictions", "catp-eval")

    def resume(self, batches: Iterable[Sequence[VqaExample]]) -> tuple[int, Iterator[Sequence[VqaExample]]]:
        """How many questions are answered, and the batches that are left.

        A batch of which only a part was written is answered again, whole: so its answers do not depend on the kill.

        Raises:
            DataError: what is in the file are not these questions.
        """
        remaining = iter(batches)
        lines = self._lines()
        done, end = 0, self.start
        left: Iterator[Sequence[VqaExample]] = remaining
        for batch in remaining:
            found = list(islice(lines, len(batch)))
            for number, ((prediction, _), question) in enumerate(zip(found, batch), start=done + 2):
                if prediction.id != question.id:
                    raise self.wrong(number, f"question {prediction.id!r} where the data has {question.id!r}")
            if len(found) < len(batch):
                left = chain([batch], remaining)
                break
            done += len(batch)
            end = found[-1][1]
        self.truncate(end)
        return done, left

    def __iter__(self) -> Iterator[Prediction]:
        return (prediction for prediction, _ in self._lines())

    def _lines(self) -> Iterator[tuple[Prediction, int]]:
        """Each prediction with the place where its line ends."""
        return ((self._parse(line, number), end) for number, line, end in self.whole())

    def _parse(self, line: bytes, number: int) -> Prediction:
        try:
            prediction = Prediction.model_validate_json(line)
        except ValidationError:
            raise self.wrong(number, "not a prediction") from None
        expected = 0 if prediction.error else self._columns
        if {len(prediction.answers), len(prediction.num_kept), len(prediction.accuracy)} != {expected}:
            raise self.wrong(number, f"not {expected} answers")
        return prediction
