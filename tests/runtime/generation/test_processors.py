"""What changes scores, against Hugging Face's processors, at every length around where it begins."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)

from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.generation.processors import make_processors, process

VOCABULARY, ENDS = 5, frozenset({1, 3})
ONE: list[dict[str, Any]] = [
    *({"no_repeat_ngram_size": size} for size in (1, 2, 3)),
    *({"repetition_penalty": penalty} for penalty in (0.5, 1.3)),
    *({"min_length": length} for length in (2, 3, 5)),
    *({"min_new_tokens": count} for count in (1, 2)),
]


def theirs(prompt: int, setting: dict[str, Any]) -> Any:
    ((name, value),) = setting.items()
    ends = sorted(ENDS)
    return {
        "no_repeat_ngram_size": lambda: NoRepeatNGramLogitsProcessor(value),
        "repetition_penalty": lambda: RepetitionPenaltyLogitsProcessor(value),
        "min_length": lambda: MinLengthLogitsProcessor(value, ends),
        "min_new_tokens": lambda: MinNewTokensLengthLogitsProcessor(prompt, value, ends),
    }[name]()


@pytest.mark.parametrize("setting", ONE, ids=str)
def test_scores_are_hugging_face_s(setting: dict[str, Any]) -> None:
    rng, processors, changed = np.random.default_rng(0), make_processors(GREEDY.override(**setting), ENDS), 0
    for prompt in (1, 2):
        for answered in range(5):
            for _ in range(10):
                ids = rng.integers(0, VOCABULARY, prompt + answered).tolist()
                scores = rng.normal(0, 1, VOCABULARY).astype(np.float32)
                wanted = theirs(prompt, setting)(torch.tensor([ids]), torch.from_numpy(scores.copy())[None])[0].numpy()
                found = process(processors, scores, ids, answered)
                np.testing.assert_allclose(found, wanted, rtol=1e-6)
                changed += not np.array_equal(found, scores)
    assert changed
