"""In place of a language model, where a bundle has none: it scores texts instead of writing them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from catp.runtime.errors import UsageError
from catp.runtime.language_models.base import Batch, Output


class NoLanguageModel:
    """Refuses every question."""

    def __init__(self, bundle: Path) -> None:
        self._bundle = bundle

    def context(self, prompt: Sequence[int], image_tokens: Sequence[int]) -> NoReturn:
        raise self._refusal()

    def begin(self, batch: Batch, new_tokens: int, beams: int = 1, output: Output = "next_token") -> NoReturn:
        raise self._refusal()

    def _refusal(self) -> UsageError:
        return UsageError(
            f"bundle {self._bundle}: it has no language model, it scores texts; use catp-match, or Pipeline.match "
            "(Pipeline.judge for two images)"
        )
