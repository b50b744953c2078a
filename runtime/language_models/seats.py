"""The interface of a language model whose rows come and go: each is admitted alone, all running ones step together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from catp.runtime.errors import UsageError
from catp.runtime.language_models.base import Batch


@dataclass(eq=False)
class Seat:
    """One prompt under way.

    Args:
        row: its place among the others; the lowest free one when it was admitted.
        limit: the most tokens that it can get, at least 1.
    """

    row: int
    limit: int


class Seats(Protocol):
    """Room for several prompts."""

    graph: str
    """The name of the graph that outputs the tokens, for messages."""

    vocabulary: int
    """Tokens are 0 .. vocabulary - 1."""

    capacity: int
    """The most prompts at a time."""

    length: int
    """The most tokens of one: kept image tokens, prompt, and answer but for its last token."""

    def admit(self, batch: Batch, new_tokens: int) -> Seat:
        """Read a prompt; its outputs are there when this returns, and until the next call of `step`.

        Args:
            batch: of one prompt.
            new_tokens: at most.

        Raises:
            UsageError: it does not fit.
            GraphError: the graph fails; nobody else is the worse for it.
        """
        ...

    def step(self, tokens: Mapping[Seat, int]) -> None:
        """Feed one token to each seat that is taken.

        Raises:
            GraphError: the graph fails; all of them are lost.
        """
        ...

    def token(self, seat: Seat) -> int:
        """The likeliest next token, by what was read last."""
        ...

    def logits(self, seat: Seat) -> np.ndarray:
        """float32 [V] of the next token, by what was read last."""
        ...

    def free(self, seat: Seat) -> None:
        """Make room; nothing of the prompt stays. Of a seat that is free already, nothing."""
        ...


def check_fit(batch: Batch, limit: int, length: int, counts_image: bool = True) -> int:
    """The limit itself, if a prompt with an answer of so many tokens fits a seat.

    Raises:
        UsageError: it does not.
    """
    kept, read = batch.prefix_embeds.shape[1] if counts_image else 0, len(batch.prompts[0])
    if kept + read + limit - 1 > length:
        raise UsageError(
            f"{kept} image tokens, {read} of the prompt and {limit} new ones: at most {length + 1} together are served "
            "here; give a shorter prompt, a smaller max_new_tokens or a larger ratio"
        )
    return limit
