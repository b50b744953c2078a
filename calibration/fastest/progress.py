"""The accuracy of triples as a file of JSON lines, so that a run that was stopped asks only what it had not asked."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from catp.calibration.accuracy.lines import LinesFile
from catp.calibration.accuracy.predictions import in_words
from catp.calibration.data.halves import Half
from catp.calibration.data.metrics import Metric
from catp.calibration.fastest.bundles import COMMAND
from catp.calibration.fastest.triples import Triple
from catp.runtime.bundle.strict import Strict


class Settings(Strict):
    """All that decides the answers of a triple; which triples are asked does not, nor does the budget."""

    bundles: dict[str, str] = Field(description="sha256 of each one's content, by name")
    provider: str
    threads: int | None = Field(description="none: the provider's choice")
    data: str
    metric: Metric
    limit: int | None
    fraction: float | None
    seed: int
    batch_size: int
    questions: int
    digest: str = Field(description="of questions and answers, sha256")


class _Header(Strict):
    kind: Literal["catp-calibrate fastest progress"] = "catp-calibrate fastest progress"
    schema_version: Literal[1] = 1
    settings: Settings

    def differences(self, other: bytes) -> list[str]:
        """In words, what another file's settings have that these haven't."""
        theirs = _Header.model_validate_json(other).settings
        found = [name for name, here in self.settings if getattr(theirs, name) != here]
        if set(found) & {"data", "limit", "fraction", "seed"}:  # which is why the questions are others
            found = [name for name in found if name not in ("metric", "questions", "digest")]
        words = {"bundles": "other bundles", "digest": "other questions or answers"}
        return [
            words.get(name) or in_words(name, getattr(theirs, name), getattr(self.settings, name)) for name in found
        ]


class Cell(Strict):
    """The answers of one triple on one half: how right each one is."""

    half: Half
    triple: Triple
    right: tuple[float, ...] = Field(description="by question, from 0 to 1")
    images: tuple[str, ...] = Field(description="of each question")
    skipped: int = Field(description="questions that could not be asked")
    tokens_kept: float | None = Field(description="query tokens after the vote, mean over pictures")


class ProgressFile(LinesFile):
    """The file of a run, and the cells in it.

    Args:
        path: written where it doesn't exist or is empty.

    Raises:
        UsageError: it is another file, or was begun with other settings; the message names what differs.
        DataError: a line is no result.
        CatpError: it can't be written.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        super().__init__(path, _Header(settings=settings), "progress", COMMAND)
        self.cells: list[Cell] = []
        finished = self.start
        for number, line, end in self.whole():
            finished = end
            try:
                self.cells.append(Cell.model_validate_json(line))
            except ValidationError:
                raise self.wrong(number, "no result of a triple") from None
            if len(self.cells[-1].right) != len(self.cells[-1].images):
                raise self.wrong(number, "not as many results as pictures")
        self.truncate(finished)  # what was half written when the run was stopped

    def add(self, cells: Iterable[Cell]) -> None:
        """Append them.

        Raises:
            CatpError: the disk is full, say; the file can be resumed.
        """
        found = list(cells)
        self.append(found)
        self.cells += found
