"""Progress of long work, as libraries report it: they know no screen."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[str], AbstractContextManager[object]]
"""Called with the name of a step; entered while it lasts."""


def silent(_: str) -> AbstractContextManager[object]:
    """Shows nothing."""
    return nullcontext()
