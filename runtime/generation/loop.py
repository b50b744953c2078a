"""From a batch of prompts to their answers: the settings choose how."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from catp.runtime.errors import GraphError
from catp.runtime.generation.beams import generate_with_beams
from catp.runtime.generation.greedy import generate_greedily
from catp.runtime.generation.one_by_one import generate_one_by_one
from catp.runtime.generation.processors import make_processors
from catp.runtime.generation.request import Request
from catp.runtime.generation.result import Generation
from catp.runtime.generation.stopping import Answers
from catp.runtime.language_models.base import LanguageModel


def generate(model: LanguageModel, request: Request) -> Generation:
    """Continue each prompt until it ends, it has its `max_new_tokens`, or the model has no position left.

    Raises:
        UsageError: a prompt does not fit the model, or the batch does not fit the engine.
        GraphError: a graph fails, or its scores are not finite; the message says in which step.
    """
    *_, result = generate_in_steps(model, request)
    return result


def generate_in_steps(model: LanguageModel, request: Request) -> Iterator[Generation]:
    """As `generate`, after each token; what is yielded is one object that grows."""
    began = time.perf_counter()
    settings, limits = request.settings, request.max_new_tokens
    plain = settings.is_plain_greedy
    decoding = model.begin(request.batch, max(limits), settings.num_beams, "next_token" if plain else "logits")
    answers = Answers(request.contexts, np.minimum(decoding.limits, limits), request.ending)
    processors = make_processors(settings, request.ending.tokens)
    if plain:
        steps = generate_greedily(decoding, answers)
    elif settings.num_beams == 1:
        steps = generate_one_by_one(decoding, answers, settings, processors)
    else:
        steps = generate_with_beams(decoding, answers, settings, processors)
    result = Generation(answers.token_ids, decode_seconds=decoding.decode_seconds)
    for _ in _naming_stages(steps):
        if not result.first_token_seconds:
            result.first_token_seconds = time.perf_counter() - began
            result.prefill_seconds = decoding.prefill_seconds
        yield result


def _naming_stages(steps: Iterator[None]) -> Iterator[None]:
    """The same steps; an error of a graph says in which it came."""
    step = 0
    try:
        for _ in steps:
            yield
            step += 1
    except GraphError as error:
        raise error.during(f"decode step {step}" if step else "reading the prompts") from error
