"""Settings that leave nothing to choose from: what Hugging Face gives where it gives something, else one error."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import samples
from catp.export.verification.continuations import cache_of
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.generation_settings import GREEDY
from catp.runtime.errors import GraphError
from catp.runtime.generation.beams import generate_with_beams
from catp.runtime.generation.one_by_one import generate_one_by_one
from catp.runtime.generation.stopping import Answers, Ending
from catp.runtime.inputs.images import load_image

SAMPLE = samples()[0]
EXHAUSTED = {"no_repeat_ngram_size": 1, "min_new_tokens": 410, "max_new_tokens": 414}
"""More tokens than the vocabulary has, none of them twice."""


@pytest.fixture(scope="module")
def endless(t5_bundle: Path) -> Pipeline:
    """Without position ids, so answers may be of any length."""
    return Pipeline.load(t5_bundle)


@pytest.fixture(scope="module")
def reference(t5_checkpoint: Path) -> Any:
    """Tokens of Hugging Face's generate()."""
    checkpoint = load_checkpoint(str(t5_checkpoint))
    side = Reference(checkpoint)

    def generate(**settings: Any) -> list[int]:
        placeholders = [checkpoint.placeholder_id] * checkpoint.model.config.num_query_tokens
        ids = torch.tensor([placeholders + side.tokenize(SAMPLE.prompt)])
        with torch.no_grad():
            output = checkpoint.model.generate(
                pixel_values=side.pixel_values([load_image(SAMPLE.image)]),
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                **cache_of("encoder-decoder"),
                **settings,
            )
        return output[0, 1:].tolist()

    return generate


def answer(pipeline: Pipeline, **settings: Any) -> list[int]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # numpy's
        return pipeline.generate([SAMPLE.image], [SAMPLE.prompt], ratio=0, **settings)[0].token_ids


@pytest.mark.parametrize(
    "settings",
    [
        EXHAUSTED,
        {"repetition_penalty": 1e-40, "max_new_tokens": 6},
        {"repetition_penalty": 1e40, "max_new_tokens": 6},
        {"num_beams": 3, "repetition_penalty": 1e-40, "max_new_tokens": 6},
        {"num_beams": 3, "repetition_penalty": 1e40, "max_new_tokens": 6},
        {"num_beams": 2, "length_penalty": 40.0, "max_new_tokens": 12},
        {"do_sample": True, "top_p": 0.0, "temperature": 9.0, "max_new_tokens": 6},
        {"do_sample": True, "temperature": 1e-20, "max_new_tokens": 6},
    ],
    ids=str,
)
def test_what_hugging_face_gives(endless: Pipeline, reference: Any, settings: dict[str, Any]) -> None:
    found = answer(endless, **settings)
    assert found == reference(**settings) and len(found) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**EXHAUSTED, "do_sample": True}, "after 38[0-9] tokens none is left that may come next"),
        ({**EXHAUSTED, "do_sample": True, "num_beams": 2}, "after 38[0-9] tokens none is left that may come next"),
        ({**EXHAUSTED, "num_beams": 2}, "the search ends after 38[0-9] tokens without an answer"),
        ({"num_beams": 2, "length_penalty": -6.0, "max_new_tokens": 50}, "length_penalty -6.0: the search ends after"),
        ({"num_beams": 2, "length_penalty": -500.0, "max_new_tokens": 9}, "the search ends after 2 tokens without"),
        ({"num_beams": 2, "length_penalty": 500.0, "max_new_tokens": 9}, "length_penalty 500.0: scores are not finite"),
        ({"do_sample": True, "temperature": 1e-40}, "temperature 1e-40: scores are not finite after 0 tokens"),
        ({"do_sample": True, "temperature": 1e-60}, "temperature 1e-60: scores are not finite after 0 tokens"),
        ({"do_sample": True, "num_beams": 2, "temperature": 1e-40}, "temperature 1e-40: after 0 tokens none is left"),
        ({"do_sample": True, "num_beams": 2, "temperature": 1e-20}, "temperature 1e-20: the search ends after"),
        ({"do_sample": True, "repetition_penalty": 1e-40}, "repetition_penalty 1e-40: scores are not finite"),
    ],
    ids=str,
)
def test_what_it_fails_at_or_makes_up_is_an_error(endless: Pipeline, settings: dict[str, Any], message: str) -> None:
    """An unfinished beam, which it gives where none finishes, is whichever its sorting leaves first."""
    with pytest.raises(UsageError, match=message) as caught:
        answer(endless, **settings)
    assert "\n" not in str(caught.value)


class _Broken:
    """A model whose logits are those of an overflow from its third token on."""

    graph = "language_model"
    vocabulary = 9

    def __init__(self, rows: int, value: float) -> None:
        self.rows, self.value, self.steps = rows, value, 0

    def prefill(self) -> np.ndarray:
        return np.tile(np.arange(9, dtype=np.float32), (1, 1))

    def step(self, tokens: np.ndarray) -> np.ndarray:
        self.steps += 1
        logits = np.tile(np.arange(9, dtype=np.float32), (self.rows, 1))
        if self.steps == 2:
            logits[:, 4] = self.value
        return logits

    def reorder(self, parents: np.ndarray) -> None:
        pass


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("settings", [{}, {"do_sample": True}, {"num_beams": 2}, {"num_beams": 2, "do_sample": True}])
def test_logits_that_are_not_finite_are_no_answer(settings: dict[str, Any], value: float) -> None:
    chosen = GREEDY.override(**settings)
    generate = generate_one_by_one if chosen.num_beams == 1 else generate_with_beams
    answers = Answers([[1]], np.array([5]), Ending(frozenset({0})))
    steps = generate(_Broken(chosen.num_beams, value), answers, chosen, ())  # type: ignore[arg-type]
    assert next(steps) is None and next(steps) is None
    with pytest.raises(GraphError, match=r"language_model.*not finite"):
        next(steps)
    answers = Answers([[1]], np.array([5]), Ending(frozenset({0})))
    assert len(list(generate(_Broken(chosen.num_beams, -np.inf), answers, chosen, ()))) == 5  # type: ignore[arg-type]
