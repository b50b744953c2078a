"""A file of JSON lines that grows while results come, so that a run that was killed goes on where it stopped.

The first line says what decides the results, every other line is one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ValidationError

from catp.calibration.data.errors import DataError
from catp.runtime.errors import CatpError, UsageError

ELSEWHERE = "name another file, or delete this one"


class Header(Protocol):
    """A first line, as a pydantic model."""

    def model_dump_json(self) -> str: ...

    def differences(self, other: bytes) -> list[str]:
        """In words, what another file's first line has that this one hasn't.

        Raises:
            ValidationError: it is none.
        """
        ...


class LinesFile:
    """The file, and what messages call it.

    Args:
        path: written where it doesn't exist or is empty.
        header: of this run.
        what: the option that names the file.
        command: that writes such files.

    Raises:
        UsageError: it is another file, or one that was begun otherwise; the message names what differs.
        CatpError: it can't be written.
    """

    def __init__(self, path: Path, header: Header, what: str, command: str) -> None:
        self.path = path
        self._what = what
        line = header.model_dump_json().encode() + b"\n"
        self._start = len(line)
        try:
            with path.open("a+b") as file:
                file.seek(0)
                first = file.readline()
                if first.endswith(b"\n"):
                    self._check(header, first, command)
                    self._start = len(first)
                elif line.startswith(first):  # new, or killed while the header was written
                    file.truncate(0)
                    file.write(line)
                else:
                    raise UsageError(f"{what} {path}: not a file that {command} wrote; {ELSEWHERE}")
        except OSError as error:
            raise CatpError(f"{what} {path}: can't be written ({error.strerror})") from None

    def _check(self, header: Header, line: bytes, command: str) -> None:
        try:
            differences = header.differences(line)
        except ValidationError:
            raise UsageError(
                f"{self._what} {self.path}: not a file that this version of {command} wrote; {ELSEWHERE}"
            ) from None
        if differences:
            raise UsageError(f"{self._what} {self.path}: it was begun with {'; '.join(differences)}; {ELSEWHERE}")

    def append(self, lines: Iterable[BaseModel]) -> None:
        """Write one line each, and have the system take them.

        Raises:
            CatpError: the disk is full, say; the file can be resumed.
        """
        text = "".join(line.model_dump_json(exclude_defaults=True) + "\n" for line in lines)
        try:
            with self.path.open("ab") as file:
                file.write(text.encode())
        except OSError as error:
            raise CatpError(f"{self._what} {self.path}: can't be written ({error.strerror})") from None

    def clear(self) -> None:
        """Leave the header alone."""
        self.truncate(self._start)

    @property
    def start(self) -> int:
        """The place where the header ends, in bytes."""
        return self._start

    def whole(self) -> Iterator[tuple[int, bytes, int]]:
        """The number of each line after the header, the line, and where it ends; one without its end was never
        finished, and is left out."""
        end = self._start
        with self.path.open("rb") as file:
            file.seek(end)
            for number, line in enumerate(file, start=2):
                if not line.endswith(b"\n"):
                    return
                end += len(line)
                yield number, line, end

    def wrong(self, number: int, why: str) -> DataError:
        """The error of a line that somebody has edited."""
        return DataError(f"{self.path}, line {number}: {why}; {ELSEWHERE}")

    def truncate(self, size: int) -> None:
        """Leave so many bytes."""
        with self.path.open("r+b") as file:
            file.truncate(size)
