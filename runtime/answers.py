"""Answers, with the time that they took."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Timings:
    """Milliseconds of one batch; every row of the batch carries the same ones."""

    preprocess: float
    vision: float
    qformer: float
    prefill: float
    decode_per_token: float  # mean over decode steps; 0 where the first token ended every row
    total: float


@dataclass(frozen=True)
class Answer:
    """The result of one image or video and prompt."""

    answer: str
    token_ids: list[int]  # generated ones, the end token included where it was reached
    kept_indices: list[int]
    """Query tokens, ascending, of 0 .. num_query_tokens - 1, for a video of frame * num_query_tokens + these. Where
    answers read image tokens themselves: CLS is 0, patch i is 1 + i, and a token merged of several is not listed."""
    num_kept: int
    provider: str
    timings_ms: Timings

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
