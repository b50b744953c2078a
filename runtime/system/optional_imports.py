"""Libraries that may be missing: what is said of one is what is the matter with it."""

from __future__ import annotations

import importlib
from typing import Any


def optional_import(name: str) -> tuple[Any, str]:
    """The module, or None and why: "is not installed", or that it is and can't be imported.

    Raises:
        KeyboardInterrupt: Ctrl-C came meanwhile; modules written in C make an ImportError of it.
    """
    try:
        return importlib.import_module(name), ""
    except ImportError as error:
        return None, reason_of(error, name)


def reason_of(error: ImportError, name: str | None) -> str:
    """Why an import failed, as a predicate of the library's name.

    Raises:
        KeyboardInterrupt: Ctrl-C did it.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            raise KeyboardInterrupt from error
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ModuleNotFoundError) and error.name == name:
        return "is not installed"
    return f"can't be imported ({next(iter(str(error).splitlines()), '')})"
