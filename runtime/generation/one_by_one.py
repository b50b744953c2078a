"""One answer per prompt, its tokens chosen on the host from processed scores: the likeliest, or one at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from catp.runtime.bundle.generation_settings import GenerationSettings
from catp.runtime.generation.failures import check_scores, not_finite, quietly
from catp.runtime.generation.finite import check_finite
from catp.runtime.generation.processors import Processor, process
from catp.runtime.generation.sampling import draw, generators, warp
from catp.runtime.generation.stopping import Answers
from catp.runtime.language_models.base import Decoding


def generate_one_by_one(
    decoding: Decoding, answers: Answers, settings: GenerationSettings, processors: Sequence[Processor]
) -> Iterator[None]:
    """Fill `answers`; yields whenever each running row has one token more.

    Raises:
        GraphError: scores are not finite.
    """
    rngs = generators(settings.seed, len(answers.running))
    tokens = np.zeros(len(answers.running), np.int64)
    logits = decoding.prefill()
    while True:
        check_finite(decoding.graph, logits, answers.running)
        for row in np.flatnonzero(answers.running).tolist():
            answered = len(answers.token_ids[row])
            tokens[row] = choose(logits[row], answers.ids(row), answered, settings, processors, rngs[row])
        answers.append(tokens)
        yield
        if not answers.running.any():
            return
        logits = decoding.step(tokens)


@quietly
def choose(
    logits: np.ndarray,
    ids: Sequence[int],
    answered: int,
    settings: GenerationSettings,
    processors: Sequence[Processor],
    rng: np.random.Generator,
) -> int:
    """The token after `ids`, of which the answer has `answered`.

    Raises:
        UsageError: the settings make scores of them that are not, or, of tokens to draw from, leave none. The likeliest
            of none is token 0, as in transformers.
    """
    scores = process(processors, logits, ids, answered)
    if np.isnan(scores).any():
        raise not_finite(settings, answered)
    if not settings.do_sample:
        return int(scores.argmax())
    scores = warp(scores, settings)
    check_scores(scores, settings, answered)
    return draw(scores, rng)
