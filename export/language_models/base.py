"""The interface of a kind of language model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch

from catp.export.graphs import Graph
from catp.runtime.bundle.chains import LanguageKind


class LanguagePart(Protocol):
    """A language model that goes on after kept tokens and a prompt."""

    kind: LanguageKind
    accepts: str  # for people: which language models

    def check_config(self, config: Any, name: str) -> None:
        """Raises UsageError where the language model that checkpoint `name` configures can't be expressed."""
        ...

    def check(self, lm: Any, name: str) -> None:
        """Raises UsageError where the language model that was loaded can't be expressed."""
        ...

    def set_dtype(self, lm: Any, dtype: torch.dtype) -> None:
        """Turns its weights into `dtype`, in place, but for those that would break."""
        ...

    def graphs(self, lm: Any) -> Iterator[Graph]:
        """In the order of the pipeline."""
        ...

    def max_positions(self, lm: Any) -> int | None:
        """How many positions it has; None: only distances matter, and there is no end to them."""
        ...


@runtime_checkable
class StandsIn(Protocol):
    """A language model that is not as the checkpoint's class computes it."""

    def standing_in(self, lm: Any) -> AbstractContextManager[None]:
        """While it lasts, Hugging Face's own methods of `lm` see what this language model sees."""
        ...


def set_parameters(module: torch.nn.Module, dtype: torch.dtype) -> None:
    """Buffers stay: at position 100, rotary frequencies in bfloat16 would be off by as much as a tenth of a radian."""
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
