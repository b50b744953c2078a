"""INT8 for OpenVINO by NNCF's post-training quantisation, calibrated on the benchmark's own pictures and prompts.

Weights and activations of all parts are int8. Of what NNCF offers, this is what was fastest on a model of 311
million parameters (two cores with AVX512-VNNI, no AMX): compressing weights alone, with activations quantised as they
come, took 1.3 to 1.7 times as long in every part. Attention of the language model stays in float32: with its inputs
quantised the CPU plugin no longer finds the operator that runs it over the cache in place, and a decode step took 1.3
times as long.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from catp.calibration.benchmark.contenders.subject import make_picture
from catp.runtime.providers.openvino.library import import_openvino
from catp.runtime.providers.openvino.signal_stack import signal_stack_kept

PICTURES = 16
"""That activations are observed on. They are all alike: NNCF's default of 300 would only take longer."""
SEED = 20_240_611
"""Of pictures and prompts: none that anybody would measure with."""
PROMPT_TOKENS = 16
DECODE_STEPS = 3
"""After each prompt, so that one token over a full cache is observed too."""
ATTENTION = ("ScaledDotProductAttention",)
"""Operators that stay as they are in a language model."""


def import_nncf() -> Any:
    """The package, without its telemetry and its remarks on standard output."""
    import_openvino()
    nncf = importlib.import_module("nncf")
    nncf.set_log_level(logging.ERROR)
    return nncf


def calibration_pictures(int8: bool) -> list[Image.Image]:
    """As those that are timed, of another seed; without INT8 two, which are examples to convert with."""
    rng = np.random.default_rng(SEED)
    return [make_picture(rng) for _ in range(PICTURES if int8 else 2)]


def calibration_texts(tokenizer: Any, count: int) -> list[np.ndarray]:
    """Texts int64 [1, PROMPT_TOKENS] of ordinary tokens, framed by the marks of a text, as those that are timed."""
    rng, marks = np.random.default_rng(SEED), tokenizer("").input_ids
    return [
        np.concatenate([[marks[:1]], draw(rng, len(tokenizer), PROMPT_TOKENS - len(marks)), [marks[1:]]], 1).astype(int)
        for _ in range(count)
    ]


def draw(rng: np.random.Generator, vocabulary: int, count: int) -> np.ndarray:
    """A text int64 [1, count] of ordinary tokens."""
    # None of the first ids, which are special in most vocabularies, nor of the last ones, which are often added.
    return rng.integers(4, max(5, vocabulary - 8), (1, count))


def quantize_model(model: Any, samples: Sequence[Any], left_alone: Sequence[str] = ()) -> Any:
    """The same in INT8, by `nncf.quantize`: for transformers (with SmoothQuant), fast bias correction.

    Args:
        left_alone: types of operators whose inputs are not quantised.
    """
    nncf = import_nncf()
    with signal_stack_kept(), contextlib.redirect_stdout(io.StringIO()):  # it reports its progress there
        return nncf.quantize(
            model,
            nncf.Dataset(samples),
            subset_size=len(samples),
            model_type=nncf.ModelType.TRANSFORMER,
            fast_bias_correction=True,
            ignored_scope=nncf.IgnoredScope(types=list(left_alone)),
        )


def step_samples(
    rng: np.random.Generator,
    vocabulary: int,
    beginning: np.ndarray,
    first: Mapping[str, np.ndarray],
    later: Mapping[str, np.ndarray],
) -> list[dict[str, Any]]:
    """A beginning int64 [1,S] followed by decode steps over the same cache.

    Args:
        first: other inputs of the first step.
        later: those of the steps after it.
    """
    import_nncf()
    from nncf.definitions import NNCF_DATASET_RESET_STATE_KEY

    return [
        {
            "input_ids": beginning if step == 0 else draw(rng, vocabulary, 1),
            "beam_idx": np.zeros(1, np.int32),
            **(first if step == 0 else later),
            NNCF_DATASET_RESET_STATE_KEY: step == 0,
        }
        for step in range(1 + DECODE_STEPS)
    ]
