"""No language model: what scores texts instead of writing them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from catp.export.graphs import Graph
from catp.runtime.bundle.chains import LanguageKind


class NoLanguageModel:
    """Nothing to check, to turn into another type, or to export."""

    kind: LanguageKind = "none"
    accepts = "none: the Q-Former reads the text"

    def check_config(self, config: Any, name: str) -> None:
        pass

    def check(self, lm: Any, name: str) -> None:
        pass

    def set_dtype(self, lm: Any, dtype: torch.dtype) -> None:
        pass

    def graphs(self, lm: Any) -> Iterator[Graph]:
        yield from ()

    def max_positions(self, lm: Any) -> int | None:
        return None
