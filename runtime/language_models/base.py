"""The interface between how a language model is driven and how its tokens are chosen.

A language model turns a batch of images and prompts into rows that grow by one token a step. It knows graphs, caches
and positions, and nothing of beams' scores, end tokens or temperatures; `catp.runtime.generation` knows those, and
no graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from catp.runtime.providers.base import Value

Output = Literal["next_token", "logits"]
"""What is read of each step: int64 [R], the token with the highest logit, or float32 [R, V]. The other stays where it
is: a step of greedy generation brings 8 bytes a row to the host."""


@dataclass(frozen=True)
class Batch:
    """A batch of prompts, each about an image's kept tokens."""

    prefix_embeds: Value  # [I, k, D] in the graph's dtype
    prefix_positions: Value  # int64 [I, k]; a language model without position ids ignores it
    text_start: int  # position of each prompt's first token, likewise
    prompts: Sequence[Sequence[int]]  # B lists of at least one token id; of different length if need be
    images: Sequence[int] | None = None  # per prompt, its row of the prefix; None: row by row, and I is B
    temperature: float | None = None  # of an encoder that counts the tokens it keeps of a prompt; None: the bundle's


class Decoding(Protocol):
    """One batch under way: `prefill` once, then `step` as often as wanted.

    Rows are 0 .. R - 1: R = B prompts, or B x beams once `reorder` was called, those of a prompt together.
    """

    limits: np.ndarray
    """int64 [B]: the most tokens that each prompt can get, at least 1: new_tokens, or less where positions end."""

    prefill_seconds: float
    """From the prefill's binding to its output in host memory."""

    decode_seconds: list[float]
    """Of each step, from the graph's call to its output in host memory."""

    graph: str
    """The name of the graph that outputs the tokens, for messages."""

    vocabulary: int
    """Tokens are 0 .. vocabulary - 1."""

    def prefill(self) -> np.ndarray:
        """Read the prompts; the output chosen in `begin`, one row per prompt. Valid until the next step."""
        ...

    def logits(self) -> np.ndarray:
        """[R, V] of what was read last, whatever the output: brought to the host where it is not there."""
        ...

    def reorder(self, rows: np.ndarray) -> None:
        """Before a step of beam search: row r goes on from what row rows[r] was.

        Args:
            rows: int64 [B x beams]. At the first call, after prefill, its numbers are prompts; later they are rows.
        """
        ...

    def step(self, tokens: np.ndarray) -> np.ndarray:
        """Feed one token a row, int64 [R]; the output chosen in `begin`. Valid until the next step.

        A row that is finished may be fed anything, as often as the others need: what it gives means nothing.
        """
        ...


class LanguageModel(Protocol):
    """The language model of a bundle, its graphs loaded."""

    def context(self, prompt: Sequence[int], image_tokens: Sequence[int]) -> list[int]:
        """The ids that Hugging Face's `generate()` takes for those before the first generated one.

        Logits processors (repetition penalty, no-repeat n-grams) look at them.
        """
        ...

    def begin(self, batch: Batch, new_tokens: int, beams: int = 1, output: Output = "next_token") -> Decoding:
        """Make room for a batch.

        Args:
            new_tokens: at most per prompt, at least 1; memory is reserved for them.
            beams: rows per prompt.
            output: what `prefill` and `step` return.

        Raises:
            UsageError: a prompt does not fit the model, or the batch does not fit the engine.
        """
        ...
