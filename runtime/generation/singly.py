"""One answer per prompt, its tokens chosen on the host from processed scores: the likeliest, or one at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from catp.runtime.bundle.generation_settings import GenerationSettings
from catp.runtime.generation.processors import Processor, process
from catp.runtime.generation.sampling import draw, generators, warp
from catp.runtime.generation.stopping import Answers
from catp.runtime.language_models.base import Decoding


def generate_singly(
    decoding: Decoding, answers: Answers, settings: GenerationSettings, processors: Sequence[Processor]
) -> Iterator[None]:
    """Fill `answers`; yields whenever each running row has one token more."""
    rngs = generators(settings.seed, len(answers.running))
    tokens = np.zeros(len(answers.running), np.int64)
    logits = decoding.prefill()
    while True:
        for row in np.flatnonzero(answers.running).tolist():
            scores = process(processors, logits[row], answers.ids(row), len(answers.token_ids[row]))
            tokens[row] = draw(warp(scores, settings), rngs[row]) if settings.do_sample else scores.argmax()
        answers.append(tokens)
        yield
        if not answers.running.any():
            return
        logits = decoding.step(tokens)
