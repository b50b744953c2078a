"""One answer while it grows, whatever grows beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from catp.runtime.bundle.generation_settings import GenerationSettings
from catp.runtime.errors import GraphError
from catp.runtime.generation.finite import check_finite
from catp.runtime.generation.greedy import OF_NAN
from catp.runtime.generation.one_by_one import choose
from catp.runtime.generation.processors import make_processors
from catp.runtime.generation.sampling import generators
from catp.runtime.generation.stopping import Ending


class Row:
    """The answer to one prompt, of any settings but beams.

    Args:
        context: ids before the answer.
        limit: the most tokens that it may have, at least 1.
    """

    def __init__(self, context: Sequence[int], limit: int, ending: Ending, settings: GenerationSettings) -> None:
        self.token_ids: list[int] = []
        self.running = True
        self.ended = False  # by a token or a string, not by its length
        self._context = context
        self._limit = limit
        self._ending = ending
        self._settings = settings
        self._processors = make_processors(settings, ending.tokens)
        (self._rng,) = generators(settings.seed, 1)

    def take(self, graph: str, vocabulary: int, token: int, logits: Callable[[], np.ndarray]) -> None:
        """Append the next token: the graph's own choice where nothing else is asked for.

        Args:
            graph: that computed it, for messages.
            vocabulary: tokens are 0 .. vocabulary - 1.
            token: with the highest logit.
            logits: brings logits float32 [V] to the host, if they are needed.

        Raises:
            GraphError: scores are not finite, or the token is none of the vocabulary.
            UsageError: the settings leave no token, see `choose`.
        """
        if not self._settings.is_plain_greedy:
            scores = logits()
            check_finite(graph, scores[None], np.array([0]))
            ids = [*self._context, *self.token_ids]
            self._append(choose(scores, ids, len(self.token_ids), self._settings, self._processors, self._rng))
            return
        if not 0 <= token < vocabulary:
            raise GraphError(graph, f"its next token is {token}, of a vocabulary of {vocabulary}")
        self._append(token)
        # As in greedy.py: NaN stays in a row, so scores are looked at where it begins and ends, and where NaN may win.
        if len(self.token_ids) == 1 or not self.running or token == OF_NAN:
            check_finite(graph, logits()[None], np.array([0]))

    def _append(self, token: int) -> None:
        self.token_ids.append(token)
        strings = self._ending.strings
        self.ended = token in self._ending.tokens or (
            strings is not None and strings.just_completed([*self._context, *self.token_ids])
        )
        self.running = len(self.token_ids) < self._limit and not self.ended
