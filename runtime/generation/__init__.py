"""How tokens are chosen: any language model's, whatever graphs drive it (`catp.runtime.language_models`)."""

from __future__ import annotations

import time

from catp.runtime.generation.greedy import generate_greedily
from catp.runtime.generation.result import Generation
from catp.runtime.generation.stopping import Answers
from catp.runtime.language_models.base import Batch, LanguageModel


def generate(model: LanguageModel, batch: Batch, max_new_tokens: int, eos_token_ids: tuple[int, ...]) -> Generation:
    """Continue each prompt until EOS, `max_new_tokens`, or the last position that the model has.

    Raises:
        UsageError: a prompt does not fit the model.
    """
    began = time.perf_counter()
    decoding = model.begin(batch, max_new_tokens)
    answers = Answers(decoding.limits, frozenset(eos_token_ids))
    result = Generation(answers.token_ids)

    def first_token() -> None:
        result.first_token_seconds = time.perf_counter() - began

    generate_greedily(decoding, answers, first_token)
    result.prefill_seconds = decoding.prefill_seconds
    result.decode_seconds = decoding.decode_seconds
    return result


__all__ = ["Generation", "generate"]
