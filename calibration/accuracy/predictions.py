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

from catp.calibration.accuracy.settings import Grid
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.errors import DataError
from catp.calibration.data.metrics import Metric
from catp.runtime.bundle.generation_settings import GREEDY, GenerationSettings
from catp.runtime.bundle.manifest import Positions
from catp.runtime.errors import CatpError, UsageError

ELSEWHERE = "name another file, or delete this one"


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

    @property
    def grid(self) -> Grid:
        return Grid(self.methods, self.ratios, self.positions, self.keep_masses)

    def differences(self, other: Evaluation) -> list[str]:
        """In words, what `other` has that this one hasn't."""
        found = [name for name, here in self if getattr(other, name) != here]
        if set(found) & {"data", "limit", "fraction", "seed"}:  # which is why the questions are others
            found = [name for name in found if name not in ("metric", "questions", "digest")]
        return [_in_words(name, getattr(other, name), getattr(self, name)) for name in found]


def _in_words(name: str, there: object, here: object) -> str:
    if name in ("bundle", "digest"):  # of two sums nobody learns more than that they differ
        return {"bundle": "another bundle", "digest": "other questions or answers"}[name]
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


class PredictionsFile:
    """The file of an evaluation, and the predictions in it.

    Args:
        path: written where it doesn't exist or is empty.

    Raises:
        UsageError: it is another file, or the predictions of another evaluation; the message names what differs.
        CatpError: it can't be written.
    """

    def __init__(self, path: Path, evaluation: Evaluation) -> None:
        self.path = path
        self.evaluation = evaluation
        self._columns = len(evaluation.grid.settings())
        line = _Header(evaluation=evaluation).model_dump_json().encode() + b"\n"
        self._start = len(line)
        try:
            with path.open("a+b") as file:
                file.seek(0)
                first = file.readline()
                if first.endswith(b"\n"):
                    self._check_header(first)
                    self._start = len(first)
                elif line.startswith(first):  # new, or killed while the header was written
                    file.truncate(0)
                    file.write(line)
                else:
                    raise UsageError(f"predictions {path}: not a file that catp-eval wrote; {ELSEWHERE}")
        except OSError as error:
            raise CatpError(f"predictions {path}: can't be written ({error.strerror})") from None

    def _check_header(self, line: bytes) -> None:
        try:
            found = _Header.model_validate_json(line).evaluation
        except ValidationError:
            raise UsageError(
                f"predictions {self.path}: not a file that this version of catp-eval wrote; {ELSEWHERE}"
            ) from None
        differences = self.evaluation.differences(found)
        if differences:
            raise UsageError(f"predictions {self.path}: it was begun with {'; '.join(differences)}; {ELSEWHERE}")

    def resume(self, batches: Iterable[Sequence[VqaExample]]) -> tuple[int, Iterator[Sequence[VqaExample]]]:
        """How many questions are answered, and the batches that are left.

        A batch of which only a part was written is answered again, whole: so its answers do not depend on the kill.

        Raises:
            DataError: what is in the file are not these questions.
        """
        remaining = iter(batches)
        lines = self._lines()
        done, end = 0, self._start
        left: Iterator[Sequence[VqaExample]] = remaining
        for batch in remaining:
            found = list(islice(lines, len(batch)))
            for number, ((prediction, _), question) in enumerate(zip(found, batch), start=done + 2):
                if prediction.id != question.id:
                    raise DataError(
                        f"{self.path}, line {number}: question {prediction.id!r} where the data has {question.id!r}; "
                        + ELSEWHERE
                    )
            if len(found) < len(batch):
                left = chain([batch], remaining)
                break
            done += len(batch)
            end = found[-1][1]
        self._truncate(end)
        return done, left

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Write one line each, and have the system take them.

        Raises:
            CatpError: the disk is full, say; the file can be resumed.
        """
        text = "".join(prediction.model_dump_json(exclude_defaults=True) + "\n" for prediction in predictions)
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise CatpError(f"predictions {self.path}: can't be written ({error.strerror})") from None

    def clear(self) -> None:
        """Leave the header alone."""
        self._truncate(self._start)

    def __iter__(self) -> Iterator[Prediction]:
        return (prediction for prediction, _ in self._lines())

    def _lines(self) -> Iterator[tuple[Prediction, int]]:
        """Each prediction with the place where its line ends; a line without its end was never finished."""
        end = self._start
        with self.path.open("rb") as file:
            file.seek(end)
            for number, line in enumerate(file, start=2):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield self._parse(line, number), end

    def _parse(self, line: bytes, number: int) -> Prediction:
        try:
            prediction = Prediction.model_validate_json(line)
        except ValidationError:
            raise DataError(f"{self.path}, line {number}: not a prediction; {ELSEWHERE}") from None
        expected = 0 if prediction.error else self._columns
        if {len(prediction.answers), len(prediction.num_kept), len(prediction.accuracy)} != {expected}:
            raise DataError(f"{self.path}, line {number}: not {expected} answers; {ELSEWHERE}")
        return prediction

    def _truncate(self, size: int) -> None:
        with self.path.open("r+b") as file:
            file.truncate(size)
