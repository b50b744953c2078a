"""Failures of the libraries that read what users bring: one line with the cause, whatever they raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from catp.runtime.errors import CatpError


@contextmanager
def reading(what: str, advice: str, kind: type[CatpError] = CatpError) -> Iterator[None]:
    """While it lasts, what a library raises becomes an error of ours. Nothing else may be called in it.

    Args:
        what: what can't be read, for the message.
        advice: what to do about it.
        kind: of the error.
    """
    try:
        yield
    except (CatpError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of the libraries that are written in Rust is no Exception
        raise kind(f"{what} ({cause(error)}); {advice}") from None


def cause(error: BaseException) -> str:
    """An error in one line: its first one, after the error's name where that is what says something."""
    lines = str(error).strip().splitlines()
    said = " ".join(lines[0].split()) if lines else ""
    if said.endswith(":") and len(lines) > 1:  # a heading says nothing without what it announces
        said = f"{said} {' '.join(lines[1].split())}"
    if isinstance(error, OSError | ValueError | RuntimeError) and said:
        return said
    return f"{type(error).__name__}: {said}" if said else type(error).__name__
