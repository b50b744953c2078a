"""NLVR2's own files: a JSON object for each statement about two images, one a line.

    {"sentence": "The left image contains two dogs.", "label": "True", "identifier": "test1-0-1-0", ...}

(https://github.com/lil-lab/nlvr, nlvr2/data). An identifier is split, set, pair and number of the statement: the images
are those of the pair, `test1-0-1-img0.png` and `test1-0-1-img1.png`, the first one the left one. They lie beside the
file, in a folder of its name (`test1/`), or in `images/` or `images/test1/`; those of train.json by `directory` below.
Statements are read as BLIP's official code does: lower case, without punctuation, at most 40 words.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from catp.calibration.data.dataset import PairList, VqaExample
from catp.calibration.data.errors import DataError, first_problem
from catp.runtime.errors import UsageError

WORDS = 40
_LINE = 1 << 20  # bytes of a line that is looked at
_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")


class _Line(BaseModel):
    sentence: str = Field(min_length=1)
    label: Literal["True", "False"]
    identifier: str = Field(pattern=r"^[\w-]+$", max_length=200)
    directory: int | None = None


def is_nlvr2(path: Path) -> bool:
    """Whether the first line of a file is one of NLVR2's; False where there is no such file."""
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline(_LINE))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"sentence", "identifier"} <= set(first)


def read_nlvr2(path: Path) -> PairList:
    """The statements of a file. Images are not opened: a missing one shows when it is loaded.

    Raises:
        UsageError: the file can't be opened, or no image of its first statement is found.
        DataError: a line is not as above, or an identifier comes twice; the message names file and line.
    """
    found: list[VqaExample] = []
    seen: dict[str, int] = {}
    folder: Path | None = None
    try:
        with path.open("rb") as file:
            for number, content in enumerate(file, start=1):
                if not content.strip():
                    continue
                line = _parse(content, path, number)
                if line.identifier in seen:
                    raise DataError(
                        f"{path}, line {number}: identifier {line.identifier!r} is also that of line "
                        f"{seen[line.identifier]}; give every statement its own"
                    )
                seen[line.identifier] = number
                folder = folder or _folder(path, line)
                found.append(_statement(folder, line))
    except OSError as error:
        raise UsageError(f"data {path}: can't be read ({error.strerror}); give NLVR2's test1.json, say") from None
    return PairList(path.name, found)


def read_sentence(sentence: str) -> str:
    """A statement as BLIP's official code gives it to the tokenizer."""
    words = _PUNCTUATION.sub(" ", sentence.lower()).split()
    return " ".join(words[:WORDS])


def _parse(content: bytes, path: Path, number: int) -> _Line:
    try:
        return _Line.model_validate_json(content)
    except ValidationError as error:
        problem = first_problem(error).replace("at line 1 column", "at column")
        raise DataError(f"{path}, line {number}: {problem}") from None


def _names(line: _Line) -> tuple[str, str]:
    """Files of the two images, without the number of the statement."""
    pair = line.identifier.rpartition("-")[0] or line.identifier
    return f"{pair}-img0.png", f"{pair}-img1.png"


def _below(line: _Line) -> str:
    return "" if line.directory is None else str(line.directory)


def _folder(path: Path, line: _Line) -> Path:
    """Where the images are, by those of a statement."""
    beside, name = path.parent, path.stem
    places = [beside, beside / name, beside / "images", beside / "images" / name, beside.parent / "images" / name]
    for place in places:
        if (place / _below(line) / _names(line)[0]).is_file():
            return place
    raise UsageError(
        f"data {path}: {_names(line)[0]} lies in none of {', '.join(map(str, places))}; put the images into one of them"
    )


def _statement(folder: Path, line: _Line) -> VqaExample:
    first, second = (folder / _below(line) / name for name in _names(line))
    answer = line.label.lower()
    key = str(Path(_below(line)) / _names(line)[0])  # the same wherever the data lie, so that halves are
    return VqaExample(line.identifier, first, read_sentence(line.sentence), (answer,), answer, key, second)
