"""Beam search: the answers with the highest scores, a score being the sum of log-probabilities over a power of length.

Which continuations are looked at, when a finished answer counts and when the search ends are as in transformers'
`generate()`, so that the answers are; each prompt is searched for by itself, so a batch does not change them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from catp.runtime.bundle.generation_settings import GenerationSettings
from catp.runtime.errors import UsageError
from catp.runtime.generation.failures import check_scores, not_finite, quietly
from catp.runtime.generation.finite import check_finite
from catp.runtime.generation.processors import Processor, process
from catp.runtime.generation.sampling import draw_several, generators, warp
from catp.runtime.generation.stopping import Answers, Ending
from catp.runtime.language_models.base import Decoding

_NEVER = np.float32(-1e9)
"""Added to the score of what must not be chosen."""


def generate_with_beams(
    decoding: Decoding, answers: Answers, settings: GenerationSettings, processors: Sequence[Processor]
) -> Iterator[None]:
    """Fill `answers` with the best of each prompt; yields after every step, and what is there before the end is the
    best finished answer so far, if any.

    Raises:
        GraphError: scores are not finite.
        UsageError: the settings leave no answer whose score is above that of none.
    """
    beams, prompts = settings.num_beams, len(answers.contexts)
    searches = [
        _Search(context, limit, answers.ending, settings, processors, rng)
        for context, limit, rng in zip(answers.contexts, answers.limits, generators(settings.seed, prompts))
    ]
    logits = np.repeat(decoding.prefill(), beams, axis=0)
    first = True
    rows = np.arange(prompts * beams)
    while True:
        check_finite(decoding.graph, logits, np.repeat(answers.running, beams))
        parents, tokens = rows.copy(), np.zeros(len(rows), np.int64)
        for prompt, search in enumerate(searches):
            if search.running:
                own = slice(prompt * beams, (prompt + 1) * beams)
                chosen, tokens[own] = search.extend(logits[own])
                parents[own] = prompt * beams + chosen
                answers.token_ids[prompt][:] = search.best
                answers.running[prompt] = search.running
        yield
        if not answers.running.any():
            return
        decoding.reorder(parents // beams if first else parents)
        first = False
        logits = decoding.step(tokens)


@dataclass(frozen=True)
class _Finished:
    """An answer that ended, or a place for one."""

    token_ids: list[int]
    score: np.float32
    ended: bool


class _Search:
    """The search for one prompt's answer.

    Args:
        context: ids before the answer.
        limit: the most tokens of an answer.
    """

    def __init__(
        self,
        context: Sequence[int],
        limit: int,
        ending: Ending,
        settings: GenerationSettings,
        processors: Sequence[Processor],
        rng: np.random.Generator,
    ) -> None:
        self._context = list(context)
        self._limit = limit
        self._ending = ending
        self._settings = settings
        self._processors = processors
        self._rng = rng
        beams = settings.num_beams
        # So many continuations that `beams` of them go on, even where every end token is among the likeliest.
        self._looked_at = max(2, 1 + len(ending.tokens)) * beams
        self._beams: list[list[int]] = [[] for _ in range(beams)]
        # The beams are still one and the same: only the first one counts.
        self._scores = np.full(beams, _NEVER)
        self._scores[0] = 0
        self._finished = [_Finished([], _NEVER, False)] * beams
        self._improvable = True
        self.running = True

    @property
    def best(self) -> list[int]:
        """The finished answer with the highest score; empty where none is."""
        return self._finished[0].token_ids

    @quietly
    def extend(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Continue every beam by one token.

        Args:
            logits: float32 [beams, V].

        Returns:
            int64 [beams] each: which beam each new one continues, and its last token.

        Raises:
            CatpError: the logits are not finite.
            UsageError: the settings make scores of them that are not, or the search ends without an answer.
        """
        settings, beams = self._settings, self._settings.num_beams
        totals = np.stack([self._score(row, ids) for row, ids in zip(logits, self._beams)]) + self._scores[:, None]
        if np.isnan(totals).any():
            raise not_finite(settings, len(self._beams[0]))
        parents, tokens, scores = self._continuations(totals)
        candidates = [[*self._beams[parent], token] for parent, token in zip(parents.tolist(), tokens.tolist())]
        length = len(candidates[0])
        ends = np.array([length == self._limit or self._ending([*self._context, *ids]) for ids in candidates])

        going_on = scores + ends * _NEVER
        chosen = np.argsort(-going_on, kind="stable")[:beams]
        self._beams = [candidates[index] for index in chosen]
        self._scores = going_on[chosen]

        worth = self._by_length(scores, length)
        if np.isnan(worth).any():
            raise not_finite(settings, length - 1)
        self._finish(candidates, worth, ends)
        full = all(answer.ended for answer in self._finished)
        self._improvable = self._improvable and self._can_improve(length, full)
        self.running = self._improvable and not (full and settings.early_stopping is True) and not ends.all()
        if not self.running and not self._finished[0].ended:
            raise UsageError(
                f"{settings.describe()}: the search ends after {length} tokens without an answer, for none scores "
                f"above {_NEVER:g}; give settings that forbid less or are less extreme"
            )
        return parents[chosen], tokens[chosen]

    def _score(self, logits: np.ndarray, ids: list[int]) -> np.ndarray:
        """Log-probabilities of a beam's next token, processed."""
        shifted = logits - logits.max()
        scores = shifted - np.log(np.exp(shifted).sum())
        scores = process(self._processors, scores, [*self._context, *ids], len(ids))
        # With fewer tokens than there are end tokens, and one, no beam could go on.
        return (
            warp(scores, self._settings, max(2, 1 + len(self._ending.tokens))) if self._settings.do_sample else scores
        )

    def _continuations(self, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Beam, last token and score of the best continuations, or of some drawn, best first.

        Args:
            totals: float32 [beams, V].
        """
        every = totals.ravel()
        count = min(self._looked_at, every.size)
        if self._settings.do_sample:
            check_scores(every, self._settings, len(self._beams[0]))
            chosen = draw_several(every, count, self._rng)
        else:
            chosen = np.sort(np.argpartition(-every, count - 1)[:count])
        # Also what was drawn: since transformers 5.24 the likeliest of it go on, not the first drawn.
        chosen = chosen[np.argsort(-every[chosen], kind="stable")]
        parents, tokens = np.divmod(chosen, totals.shape[1])
        return parents, tokens, every[chosen]

    def _finish(self, candidates: list[list[int]], scores: np.ndarray, ends: np.ndarray) -> None:
        """Keep the best answers that have ended. Of the continuations, only the `beams` likeliest may end one."""
        beams = self._settings.num_beams
        ended = ends & (np.arange(len(ends)) < beams)
        closed = self._settings.early_stopping is True and all(answer.ended for answer in self._finished)
        worth = scores + _NEVER * (closed + (not self._improvable) + ~ended)
        merged = [*self._finished, *(_Finished(*new) for new in zip(candidates, worth, ended.tolist()))]
        self._finished = sorted(merged, key=lambda answer: -answer.score)[:beams]

    def _by_length(self, scores: Any, length: int) -> Any:
        """Scores with the length penalty."""
        try:
            return scores / np.float32(length**self._settings.length_penalty)
        except OverflowError:
            raise not_finite(self._settings, length) from None

    def _can_improve(self, length: int, full: bool) -> bool:
        """Whether the best running beam may still become better than the worst finished answer.

        Its score is taken at the length that it has now; with "never" at the most that it may get, where length pays.
        """
        settings = self._settings
        hoped = self._limit if settings.early_stopping == "never" and settings.length_penalty > 0 else length
        best = self._by_length(self._scores[0], hoped)
        worst = min(answer.score for answer in self._finished) if full else _NEVER
        return bool(best > worst)
