"""A data set of one's own: a file with one JSON object per line.

    {"image": "pictures/1.jpg", "question": "what is on the table?", "answers": ["cup", "a cup", "mug"]}
    {"image": "pictures/1.jpg", "question": "is it full?", "answer": "no", "id": "full-1", "answer_type": "yes/no"}

`image` is relative to the file; for a model of videos it is a folder of frames, or an animation. Without an `id`, a
question is called by its line; other keys are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from catp.calibration.data.dataset import QuestionList, VqaExample
from catp.calibration.data.errors import DataError, first_problem
from catp.runtime.errors import UsageError


class _Line(BaseModel):
    image: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answers: list[str] | None = None
    answer: str | None = None
    answer_type: str = "other"
    id: str | int | None = None


def read_jsonl(path: Path) -> QuestionList:
    """The questions of a file. Images are not opened: a missing one shows when it is loaded.

    Raises:
        UsageError: there is no such file.
        DataError: a line is not as above, an id comes twice, or nothing is in it; the message names file and line.
    """
    questions: list[VqaExample] = []
    line_of: dict[str, int] = {}
    for number, question in _questions(path):
        if question.id in line_of:
            raise DataError(
                f"{path}, line {number}: id {question.id!r} is also that of line {line_of[question.id]}; "
                "give every question its own"
            )
        line_of[question.id] = number
        questions.append(question)
    if not questions:
        raise DataError(f"{path}: no questions in it; write one JSON object per line")
    return QuestionList(path.name, questions)


def _questions(path: Path) -> Iterator[tuple[int, VqaExample]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(b"\xef\xbb\xbf").strip()  # a byte order mark, as some editors leave it
                if content:
                    yield number, _parse(content, path, number)
    except OSError as error:
        raise UsageError(f"data {path}: can't be opened ({error.strerror}); give a .jsonl file") from None


def _parse(content: bytes, path: Path, number: int) -> VqaExample:
    where = f"{path}, line {number}"
    try:
        line = _Line.model_validate_json(content)
    except ValidationError as error:
        # pydantic counts lines too, and sees only this one.
        raise DataError(f"{where}: {first_problem(error).replace('at line 1 column', 'at column')}") from None
    if (line.answers is None) == (line.answer is None):
        raise DataError(f'{where}: give either "answers", a list, or "answer"')
    answers = tuple(line.answers if line.answers is not None else [line.answer or ""])
    if not any(answer.strip() for answer in answers):
        raise DataError(f"{where}: its answers are empty; give at least one")
    # As written where two spellings lead to one file: nothing is looked up on disk.
    image = Path(os.path.normpath(path.parent / line.image))
    # The same wherever the data lie, so that their halves are.
    key = str(image.relative_to(path.parent) if image.is_relative_to(path.parent) else image)
    id = f"line {number}" if line.id is None else str(line.id)
    return VqaExample(id, image, line.question, answers, line.answer_type, image_key=key)
