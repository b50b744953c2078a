"""Errors in a data set's files."""

from __future__ import annotations

from pydantic import ValidationError

from catp.runtime.errors import CatpError


class DataError(CatpError):
    """A data file can't be read as what it claims to be, or contradicts itself."""


def first_problem(error: ValidationError) -> str:
    """The first thing that pydantic found wrong, in one line: where and what."""
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else problem["msg"]
