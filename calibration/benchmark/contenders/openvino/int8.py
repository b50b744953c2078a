"""INT8 for OpenVINO by NNCF's post-training quantisation, calibrated on the benchmark's own pictures and prompts.

Weights and activations of all three parts are int8. Of what NNCF offers, this is what was fastest on a model of 311
million parameters (two cores with AVX512-VNNI, no AMX): compressing weights alone, with activations quantised as they
come, took 1.3 to 1.7 times as long in every part. Attention of the language model stays in float32: with its inputs
quantised the CPU plugin no longer finds the operator that runs it over the cache in place, and a decode step took 1.3
times as long.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from catp.calibration.benchmark.contenders.openvino.conversion import Converted
from catp.calibration.benchmark.contenders.openvino.library import import_nncf
from catp.calibration.benchmark.contenders.subject import make_picture
from catp.runtime.providers.openvino.signal_stack import signal_stack_kept

PICTURES = 16
"""That activations are observed on. They are all alike: NNCF's default of 300 would only take longer."""
SEED = 20_240_611
"""Of pictures and prompts: none that anybody would measure with."""
PROMPT_TOKENS = 16
DECODE_STEPS = 3
"""After each prompt, so that one token over a full cache is observed too."""


def calibration_pictures(count: int) -> list[Image.Image]:
    """As those that are timed, of another seed."""
    rng = np.random.default_rng(SEED)
    return [make_picture(rng) for _ in range(count)]


def quantize(converted: Converted, pixel_values: Sequence[np.ndarray], vocabulary: int) -> Converted:
    """The same models in INT8, by `nncf.quantize`: for transformers (with SmoothQuant), fast bias correction.

    Args:
        pixel_values: [1,3,H,W] of the pictures that they were converted with.
        vocabulary: of the language model, in tokens.
    """
    prompts = _language_samples(converted.query_embeds, vocabulary)
    return replace(
        converted,
        vision=quantize_model(converted.vision, pixel_values),
        qformer=quantize_model(converted.qformer, converted.image_embeds),
        language_model=quantize_model(converted.language_model, prompts, ("ScaledDotProductAttention",)),
    )


def quantize_model(model: Any, samples: Sequence[Any], left_alone: Sequence[str] = ()) -> Any:
    """Args: left_alone: types of operators whose inputs are not quantised."""
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


def _language_samples(query_embeds: Sequence[np.ndarray], vocabulary: int) -> list[dict[str, Any]]:
    """Prompts of ordinary tokens, as make_timed_input's, each followed by decode steps over the same cache."""
    import_nncf()
    from nncf.definitions import NNCF_DATASET_RESET_STATE_KEY

    rng = np.random.default_rng(SEED)
    found: list[dict[str, Any]] = []
    for embeds in query_embeds:
        for step in range(1 + DECODE_STEPS):
            tokens = PROMPT_TOKENS if step == 0 else 1
            found.append(
                {
                    "input_ids": rng.integers(4, max(5, vocabulary - 8), (1, tokens)),
                    "prefix_embeds": embeds if step == 0 else embeds[:, :0],
                    "beam_idx": np.zeros(1, np.int32),
                    NNCF_DATASET_RESET_STATE_KEY: step == 0,
                }
            )
    return found
