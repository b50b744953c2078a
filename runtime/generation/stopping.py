"""When an answer ends: end tokens, stop strings, lengths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Piece = Callable[[int], bytes]
"""The bytes that a token adds to a text."""


@dataclass(frozen=True)
class StopStrings:
    """Strings that end an answer wherever they end in its text, also in the middle of a token."""

    strings: tuple[bytes, ...]
    piece: Piece

    def just_completed(self, ids: Sequence[int]) -> bool:
        """Whether one ends in the text of the last token. It may begin anywhere before, also in the prompt."""
        last = tail = self.piece(ids[-1])
        needed = max(len(string) for string in self.strings) - 1  # bytes before the last token's that can matter
        for token in reversed(ids[:-1]):
            if len(tail) - len(last) >= needed:
                break
            tail = self.piece(token) + tail
        before = len(tail) - len(last)
        return any(tail.find(string, max(0, before - len(string) + 1)) >= 0 for string in self.strings)


@dataclass(frozen=True)
class Ending:
    """The conditions that end an answer, whatever its length."""

    tokens: frozenset[int]
    strings: StopStrings | None = None

    def __call__(self, ids: Sequence[int]) -> bool:
        """Whether the last of `ids`, those before the answer included, ends it."""
        return ids[-1] in self.tokens or (self.strings is not None and self.strings.just_completed(ids))


class Answers:
    """The answers of a batch while they grow.

    Args:
        contexts: per prompt, the ids before its answer.
        limits: int64 [B], the most tokens that each may have, at least 1.
    """

    def __init__(self, contexts: Sequence[Sequence[int]], limits: np.ndarray, ending: Ending) -> None:
        self.token_ids: list[list[int]] = [[] for _ in contexts]
        self.running = np.ones(len(contexts), bool)  # bool [B], changed in place
        self.contexts = contexts
        self.limits = limits.tolist()
        self.ending = ending

    def ids(self, row: int) -> list[int]:
        """Context and answer of a row."""
        return [*self.contexts[row], *self.token_ids[row]]

    def append(self, tokens: np.ndarray) -> None:
        """Append one token int64 [B] to each row that still runs; of a finished one it means nothing."""
        for row, token in enumerate(tokens.tolist()):
            if self.running[row]:
                ids = self.token_ids[row]
                ids.append(token)
                ended = token in self.ending.tokens or (
                    self.ending.strings is not None and self.ending.strings.just_completed(self.ids(row))
                )
                self.running[row] = len(ids) < self.limits[row] and not ended
