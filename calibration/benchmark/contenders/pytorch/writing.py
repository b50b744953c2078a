"""A BLIP that answers questions or writes captions, run by Hugging Face transformers in PyTorch."""

from __future__ import annotations

import time
from typing import Any

import torch

from catp.calibration.benchmark.contenders.pytorch.loading import compile_parts, load
from catp.calibration.benchmark.contenders.subject import Case, Timed, TimedInput
from catp.runtime.bundle.chains import LanguageKind

GREEDILY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}
"""Arguments of `generate()`: the largest logit, whatever else the checkpoint's configuration asks for."""


class BlipAnswers:
    """`generate()`, greedy, with the attention and the cache that transformers chooses, all image tokens.

    Args:
        name: what a report calls it.
        checkpoint: a folder or a Hub id, with safetensors.
        threads: of PyTorch, within an operator. It holds for the whole process.
        kind: question-answering or captioning.
        dtype: name of PyTorch's type of weights and activations.
        compiled: vision encoder and text models by torch.compile, each when it is first called.

    Raises:
        UsageError: the checkpoint can't be loaded, or torch.compile doesn't work here.
    """

    def __init__(
        self,
        name: str,
        checkpoint: str,
        threads: int,
        kind: LanguageKind,
        dtype: str = "float32",
        compiled: bool = False,
    ) -> None:
        self.name = name
        self._dtype = getattr(torch, dtype)
        self._model, self._processor = load(name, checkpoint, threads, dtype, compiled, kind)
        # An end token must end nothing, and must not be forbidden either: that would change the tokens.
        self._model.config.text_config.sep_token_id = None
        self._model.text_decoder.generation_config.eos_token_id = None
        self._parts = ("vision_model", *(("text_encoder",) if kind == "question-answering" else ()), "text_decoder")
        if compiled:
            compile_parts(self._model, self._parts)
        self._began: dict[str, list[float]] = {}
        self._ended: dict[str, list[float]] = {}
        for part in self._parts:
            self._watch(part, getattr(self._model, part))

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        self._began.clear()
        self._ended.clear()
        started = time.perf_counter()
        ids = torch.tensor([timed_input.prompt_ids] * case.batch)  # anew each time: generate() writes into it
        images = timed_input.images[: case.batch]
        pixel_values = self._processor(images, return_tensors="pt").pixel_values.to(self._dtype)
        with torch.inference_mode():
            output = self._model.generate(
                pixel_values=pixel_values,
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=timed_input.new_tokens,
                **GREEDILY,
            )
        token_ids = output[:, -timed_input.new_tokens :].tolist()
        return self._sample(started, time.perf_counter(), token_ids)

    def _watch(self, part: str, module: torch.nn.Module) -> None:
        """Note when a part of the model begins and ends; on a CPU that is when its work is done."""
        began, ended = self._began, self._ended
        module.register_forward_pre_hook(lambda *_: began.setdefault(part, []).append(time.perf_counter()))
        module.register_forward_hook(lambda *_: ended.setdefault(part, []).append(time.perf_counter()))

    def _sample(self, started: float, finished: float, token_ids: list[list[int]]) -> Timed:
        spans = {
            part: [end - begin for begin, end in zip(self._began[part], self._ended[part])] for part in self._parts
        }
        first_step, *decode = spans["text_decoder"]
        total, preprocess = finished - started, self._began["vision_model"][0] - started
        first = self._ended["text_decoder"][0] - started
        vision = sum(spans["vision_model"])
        prefill = first_step + sum(spans.get("text_encoder", ()))
        found = {
            "preprocess": preprocess,
            "vision": vision,
            "prefill": prefill,
            "host": total - preprocess - vision - prefill - sum(decode),
            "time_to_first_token": first,
            "total": total,
        }
        if decode:
            found["decode"] = sum(decode) / len(decode)
            found["time_per_output_token"] = (total - first) / len(decode)
        return Timed({name: 1e3 * value for name, value in found.items()}, token_ids)
