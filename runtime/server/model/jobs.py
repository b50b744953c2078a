"""Jobs: requests as the thread that owns a model sees them, and what it tells their clients."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from catp.runtime.answers import Answer
from catp.runtime.image_sides.query_tokens import Seen
from catp.runtime.questions import Wishes
from catp.runtime.server.failures import Failure
from catp.runtime.server.shapes import Explanation


@dataclass(frozen=True)
class Piece:
    """A part of an answer's text; empty where a token added no certain character."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The end of an answer.

    Args:
        reason: "stop" at an end token or a stop string, "length" where it has the tokens that it may have.
        cached: the picture's votes were known.
        explanation: the votes, where they were asked for.
    """

    answer: Answer
    prompt_tokens: int  # of the text
    reason: str
    cached: bool
    explanation: Explanation | None = None


@dataclass(frozen=True)
class Matched:
    """Scores of texts against one picture."""

    probability: list[float]  # empty where the model has no head that reads text and picture at once
    similarity: list[float]
    kept_indices: list[int]


@dataclass(frozen=True)
class Embedded:
    """Vectors of texts, or of one picture.

    Args:
        vectors: float32 [n, Dt], each of length 1: one for each text; of a picture one, or one for each query token
            that is kept.
        kept_indices: of a picture, ascending.
    """

    vectors: np.ndarray
    kept_indices: list[int]


End = Finished | Matched | Embedded
"""The event with which a job ends that did not fail."""

Event = Piece | End | Failure


@dataclass(eq=False)
class Job:
    """One request for a model, checked; everything about it but the model's work is done.

    Args:
        tokens: of the prompt; of a retrieval model, of each text.
        key: of the image cache.
        seen: the picture, where it is known.
        pixel_values: float32 [F, 3, H, W], where it is not; None for texts alone.
        tell: hands an event to the client, from any thread.
        deadline: on time.monotonic's clock; a request without an answer by then gets none.
        queue_deadline: likewise, for its row.
    """

    request_id: str
    prompt: str
    wishes: Wishes
    tokens: Sequence[Sequence[int]]
    key: bytes
    seen: Seen | None
    pixel_values: np.ndarray | None
    preprocess_seconds: float
    tell: Callable[[Event], None]
    deadline: float
    queue_deadline: float
    work: Literal["answer", "match", "embed"] = "answer"
    explains: bool = False
    cancelled: bool = False
    accepted: float = field(default_factory=time.monotonic)

    def cancel(self) -> None:
        """Nobody waits for it any more; its row is freed between two steps."""
        self.cancelled = True
