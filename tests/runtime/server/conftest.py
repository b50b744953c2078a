"""Answers that last as long as a test needs them to, on the fastest machine too."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from catp.runtime.generation.together import Together


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """20 ms a step, until it is set."""
    go, step = threading.Event(), Together.step

    def held(together: Together) -> Any:
        if together.running:
            go.wait(0.02)
        return step(together)

    monkeypatch.setattr(Together, "step", held)
    yield go
    go.set()
