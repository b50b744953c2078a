"""A checkpoint run by OpenVINO on a CPU, as its users deploy it: converted from PyTorch, in INT8 by NNCF or in FP32."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from catp.calibration.benchmark.contenders.openvino.conversion import convert_blip2
from catp.calibration.benchmark.contenders.openvino.int8 import PICTURES, calibration_pictures, quantize
from catp.calibration.benchmark.contenders.subject import Case, Timed, TimedInput, make_sample
from catp.export.checkpoints.loading import load_checkpoint
from catp.runtime.providers.openvino.library import import_openvino
from catp.runtime.providers.openvino.signal_stack import signal_stack_kept


class OpenVinoSubject:
    """Three compiled models, greedy, all query tokens; preprocessing by transformers.

    Nothing computes in bfloat16. In INT8 the cache is what the CPU plugin makes of it (8 bits), in FP32 it is float32.
    PyTorch's weights are gone when it is loaded.

    Args:
        name: what a report calls it.
        checkpoint: a folder or a Hub id, with safetensors.
        threads: of OpenVINO.
        int8: weights and activations; else all is float32.

    Raises:
        UsageError: the checkpoint can't be loaded, or OpenVINO can't convert it.
        CatpError: its weights are broken.
    """

    def __init__(self, name: str, checkpoint: str, threads: int, int8: bool = False) -> None:
        self.name = name
        loaded = load_checkpoint(checkpoint)
        self._processor = loaded.image_processor
        # Two are examples to convert with, which calibrate nothing.
        pixel_values = [self._preprocess([picture]) for picture in calibration_pictures(PICTURES if int8 else 2)]
        converted = convert_blip2(loaded.model, pixel_values)
        vocabulary = loaded.model.language_model.config.vocab_size
        del loaded
        if int8:
            converted = quantize(converted, pixel_values, vocabulary)
        self._no_prefix = converted.query_embeds[0][:, :0]
        self._vision, self._qformer, self._language_model = (
            compile_model(model, threads, int8)
            for model in (converted.vision, converted.qformer, converted.language_model)
        )
        del converted
        gc.collect()  # modules and traces refer to each other, and hold the weights

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        clock = [time.perf_counter()]
        pixel_values = self._preprocess(timed_input.images[: case.batch])
        clock.append(time.perf_counter())
        image_embeds = infer(self._vision, [pixel_values])
        clock.append(time.perf_counter())
        query_embeds = infer(self._qformer, [image_embeds])
        clock.append(time.perf_counter())
        self._language_model.reset_state()
        tokens, prefill = self._step(np.array([timed_input.prompt_ids] * case.batch), query_embeds)
        generated, decode = [tokens], []
        no_prefix = self._no_prefix.repeat(case.batch, axis=0)
        for _ in range(timed_input.new_tokens - 1):
            tokens, seconds = self._step(tokens[:, None], no_prefix)
            generated.append(tokens)
            decode.append(seconds)
        token_ids = np.stack(generated, axis=1).tolist()
        clock.append(time.perf_counter())
        return make_sample(clock, prefill, decode, token_ids)

    def _preprocess(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self._processor(list(images), return_tensors="np").pixel_values

    def _step(self, input_ids: np.ndarray, prefix_embeds: np.ndarray) -> tuple[np.ndarray, float]:
        """The next tokens [B], and the seconds they took, argmax included."""
        started = time.perf_counter()
        rows = np.arange(len(input_ids), dtype=np.int32)
        logits = infer(self._language_model, {"input_ids": input_ids, "prefix_embeds": prefix_embeds, "beam_idx": rows})
        tokens = logits.argmax(-1)
        return tokens, time.perf_counter() - started


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
