"""Compiled models: parts of a checkpoint made ready to run on the CPU, one question at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from catp.calibration.benchmark.contenders.openvino.conversion import convert, set_shapes
from catp.calibration.benchmark.contenders.openvino.int8 import quantize_model
from catp.runtime.providers.openvino.library import import_openvino
from catp.runtime.providers.openvino.signal_stack import signal_stack_kept


def prepare(module: torch.nn.Module, samples: Sequence[tuple[np.ndarray, ...]], threads: int, int8: bool) -> Any:
    """An infer request of a module without a cache.

    Args:
        samples: arguments of single rows, two at least; INT8 is calibrated with all of them.
        threads: of OpenVINO.
        int8: weights and activations; else all is float32.

    Raises:
        UsageError: OpenVINO can't express a part of it.
    """
    # Two rows, so that nothing is taken for one row only.
    example = tuple(torch.from_numpy(np.concatenate(rows)) for rows in zip(*samples[:2]))
    converted = convert(module, example)
    set_shapes(converted, {number: _free(values.shape) for number, values in enumerate(example)})
    if int8:
        converted = quantize_model(converted, [list(values) for values in samples])
    return compile_model(converted, threads, int8)


def compile_model(model: Any, threads: int, int8: bool = False) -> Any:
    """An infer request on the CPU, made for one question at a time."""
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",  # the default is bfloat16 where the CPU has it
    }
    if not int8:
        options["KV_CACHE_PRECISION"] = "f32"  # the default is u8
    with signal_stack_kept():
        return import_openvino().compile_model(model, "CPU", options).create_infer_request()


def infer(request: Any, inputs: Any) -> np.ndarray:
    """The first output, valid until the request's next call; nothing is copied."""
    request.infer(inputs, share_inputs=True, share_outputs=True)
    return request.get_output_tensor(0).data


def _free(shape: Sequence[int]) -> list[int]:
    """The shape with as many rows as are asked, and of texts as many tokens; -1 is any number."""
    return [-1, -1] if len(shape) == 2 else [-1, *shape[1:]]
