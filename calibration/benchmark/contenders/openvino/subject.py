"""A checkpoint run by OpenVINO on a CPU, as its users deploy it: converted from PyTorch, in INT8 by NNCF or in FP32."""

from __future__ import annotations

import gc
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from catp.calibration.benchmark.contenders.openvino.compiling import infer, prepare
from catp.calibration.benchmark.contenders.openvino.encoded import PARTS, EncodedLanguageModel
from catp.calibration.benchmark.contenders.openvino.image_sides import (
    InstructedQueries,
    ProjectedQueries,
    VisionTower,
    outputs_of,
)
from catp.calibration.benchmark.contenders.openvino.int8 import calibration_pictures, calibration_texts
from catp.calibration.benchmark.contenders.openvino.prefixed import PrefixedLanguageModel
from catp.calibration.benchmark.contenders.subject import (
    Case,
    Timed,
    TimedInput,
    check_instruction,
    make_sample,
)
from catp.export.checkpoints.loading import Checkpoint, load_checkpoint
from catp.runtime.bundle.chains import READ_IMAGE_TOKENS, LanguageKind
from catp.runtime.errors import UsageError


class OpenVinoContender:
    """A checkpoint's parts, compiled; preprocessing by transformers.

    Nothing computes in bfloat16. In INT8 the cache is what the CPU plugin makes of it (8 bits), in FP32 it is float32.
    PyTorch's weights are gone when it is loaded.

    Args:
        name: what a report calls it.
        checkpoint: a folder or a Hub id, with safetensors.
        threads: of OpenVINO.
        kind: of model.
        int8: weights and activations; else all is float32.

    Raises:
        UsageError: the checkpoint can't be loaded or is of another kind, or OpenVINO can't convert it.
        CatpError: its weights are broken.
    """

    def __init__(self, name: str, checkpoint: str, threads: int, kind: LanguageKind, int8: bool = False) -> None:
        self.name, self._kind, self._threads, self._int8 = name, kind, threads, int8
        loaded = load_checkpoint(checkpoint)
        if loaded.family.language.kind != kind:
            raise UsageError(
                f"--checkpoint {checkpoint}: it is {loaded.family.name}, and the bundle is not; give the folder or Hub "
                "id that the bundle was exported from"
            )
        self._processor = loaded.image_processor
        if loaded.model._supports_sdpa:  # BLIP's do not
            loaded.model.set_attn_implementation("sdpa")
        with torch.no_grad():
            self.convert(loaded, [self.preprocess([picture]) for picture in calibration_pictures(int8)])
        del loaded
        gc.collect()  # modules and traces refer to each other, and hold the weights

    def convert(self, loaded: Checkpoint, pictures: Sequence[np.ndarray]) -> None:
        """Make ready what `run` needs. Args: pictures: pixel_values [1,3,H,W] of two at least."""
        raise NotImplementedError

    def prepare(self, module: torch.nn.Module, samples: Sequence[tuple[np.ndarray, ...]]) -> Any:
        """An infer request of a module without a cache."""
        return prepare(module, samples, self._threads, self._int8)

    def preprocess(self, images: Sequence[Image.Image]) -> np.ndarray:
        return self._processor(list(images), return_tensors="np").pixel_values


class OpenVinoAnswers(OpenVinoContender):
    """Greedy answers, all query tokens or image tokens kept."""

    def convert(self, loaded: Checkpoint, pictures: Sequence[np.ndarray]) -> None:
        model, self._instructed = loaded.model, loaded.family.reads_instruction
        tower = VisionTower(model)
        seen = [(pixel_values,) for pixel_values in pictures]
        features = outputs_of(tower, seen)
        self._vision, self._qformer = self.prepare(tower, seen), None
        if self._kind not in READ_IMAGE_TOKENS:
            read: Sequence[tuple[np.ndarray, ...]] = [(tokens,) for tokens in features]
            if self._instructed:
                read = [*zip(features, calibration_texts(loaded.instruction_tokenizer, len(features)))]
            queries = (InstructedQueries if self._instructed else ProjectedQueries)(model)
            features = outputs_of(queries, read)
            self._qformer = self.prepare(queries, read)
        self._language_model: Any = (
            EncodedLanguageModel(model, self._kind, features, self._threads, self._int8)
            if self._kind in PARTS
            else PrefixedLanguageModel(model, features, self._threads, self._int8)
        )

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        """Answer about the first `case.batch` images, from pictures in memory to token ids in host memory.

        Raises:
            UsageError: the checkpoint's Q-Former reads the prompt and the bundle's does not, or the reverse.
        """
        check_instruction(self._instructed, timed_input)
        clock = [time.perf_counter()]
        pixel_values = self.preprocess(timed_input.images[: case.batch])
        clock.append(time.perf_counter())
        features = infer(self._vision, [pixel_values])
        clock.append(time.perf_counter())
        if self._qformer is not None:
            read = [np.array([timed_input.instruction_ids] * case.batch)] if self._instructed else []
            features = infer(self._qformer, [features, *read])
        clock.append(time.perf_counter())
        prompts = np.array([timed_input.prompt_ids] * case.batch)
        moments = [time.perf_counter()]
        generated = [self._language_model.begin(prompts, features)]
        moments.append(time.perf_counter())
        for _ in range(timed_input.new_tokens - 1):
            generated.append(self._language_model.go_on(generated[-1]))
            moments.append(time.perf_counter())
        prefill, *decode = np.diff(moments).tolist()
        token_ids = np.stack(generated, axis=1).tolist()
        clock.append(time.perf_counter())
        return make_sample(clock, prefill, decode, token_ids, votes=self._qformer is not None)
