"""A checkpoint run by Hugging Face transformers in PyTorch, as its users run it today."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    Blip2ForConditionalGeneration,
    InstructBlipForConditionalGeneration,
)
from transformers.utils import logging

from catp.calibration.benchmark.contenders.subject import Case, Timed, TimedInput
from catp.export.checkpoints.placeholder import placeholder_without_embedding
from catp.export.verification.continuations import cache_of
from catp.runtime.errors import UsageError


class TransformersSubject:
    """`generate()`, greedy, with the attention that transformers chooses (SDPA), all query tokens.

    Args:
        name: what a report calls it.
        checkpoint: a folder or a Hub id, with safetensors.
        threads: of PyTorch, within an operator. It holds for the whole process.
        dtype: name of PyTorch's type of weights and activations.
        compiled: vision encoder, Q-Former, language model and its encoder by torch.compile, when each is first called.

    Raises:
        UsageError: the checkpoint can't be loaded, or torch.compile doesn't work here.
    """

    def __init__(
        self, name: str, checkpoint: str, threads: int, dtype: str = "float32", compiled: bool = False
    ) -> None:
        self.name = name
        torch.set_num_threads(threads)
        if compiled:
            check_compiler(name)
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        source: dict[str, Any] = {"trust_remote_code": False}
        try:
            self._processor = AutoImageProcessor.from_pretrained(checkpoint, **source, backend="pil")
            instructed = AutoConfig.from_pretrained(checkpoint, **source).model_type == "instructblip"
            model = InstructBlipForConditionalGeneration if instructed else Blip2ForConditionalGeneration
            self._model: Any = model.from_pretrained(
                checkpoint, **source, dtype=getattr(torch, dtype), use_safetensors=True
            ).eval()
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UsageError(
                f"--checkpoint {checkpoint}: transformers can't load it ({reason}); give the folder or Hub id that "
                "the bundle was exported from"
            ) from None
        self._dtype = getattr(torch, dtype)
        for part in (self._model, self._model.language_model):
            # An end token must end nothing, and must not be forbidden either: that would change the tokens.
            part.generation_config.eos_token_id = None
        self._encodes_text = self._model.language_model.config.is_encoder_decoder
        self._began: dict[str, list[float]] = {}
        self._ended: dict[str, list[float]] = {}
        parts = {stage: getattr(self._model, stage) for stage in ("vision_model", "qformer", "language_model")}
        if self._encodes_text:  # generate() calls it by itself, before the language model's first step
            parts["text_encoder"] = self._model.language_model.get_encoder()
        for stage, module in parts.items():
            if compiled:
                module.forward = torch.compile(module.forward)  # not the call: its hooks are not to be compiled
            self._watch(stage, module)

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        self._began.clear()
        self._ended.clear()
        with self._placeholder() as placeholder:
            return self._run(timed_input, case, placeholder)

    def _placeholder(self) -> AbstractContextManager[int]:
        """The id that stands for a query token; the model is left as it is where it names one that has an embedding."""
        found, rows = self._model.config.image_token_index, len(self._model.get_input_embeddings().weight)
        if found is not None and 0 <= found < rows:
            return nullcontext(found)
        return placeholder_without_embedding(self._model, "image_token_index")

    def _run(self, timed_input: TimedInput, case: Case, placeholder: int) -> Timed:
        prompt = [placeholder] * self._model.config.num_query_tokens + timed_input.prompt_ids
        ids = torch.tensor([prompt] * case.batch)
        instruction = torch.tensor([timed_input.instruction_ids] * case.batch)
        read = {"qformer_input_ids": instruction, "qformer_attention_mask": torch.ones_like(instruction)}
        started = time.perf_counter()
        pixel_values = self._processor(timed_input.images[: case.batch], return_tensors="pt").pixel_values
        with torch.inference_mode():
            output = self._model.generate(
                pixel_values=pixel_values.to(self._dtype),
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=timed_input.new_tokens,
                do_sample=False,
                num_beams=1,
                **(read if timed_input.instruction_ids else {}),
                **cache_of("encoder-decoder" if self._encodes_text else "decoder-only"),
            )
        token_ids = output[:, -timed_input.new_tokens :].tolist()
        finished = time.perf_counter()
        return self._sample(started, finished, token_ids)

    def _watch(self, stage: str, module: torch.nn.Module) -> None:
        """Note when a part of the model begins and ends; on a CPU that is when its work is done."""
        began, ended = self._began, self._ended
        module.register_forward_pre_hook(lambda *_: began.setdefault(stage, []).append(time.perf_counter()))
        module.register_forward_hook(lambda *_: ended.setdefault(stage, []).append(time.perf_counter()))

    def _sample(self, started: float, finished: float, token_ids: list[list[int]]) -> Timed:
        def seconds(stage: str) -> list[float]:
            return [end - begin for begin, end in zip(self._began[stage], self._ended[stage])]

        prefill, *decode = seconds("language_model")
        if self._encodes_text:
            prefill += sum(seconds("text_encoder"))
        total = finished - started
        # What generate() does between the parts is host time; here the first token's moment is known.
        first = self._ended["language_model"][0] - started
        preprocess = self._began["vision_model"][0] - started
        vision, qformer = sum(seconds("vision_model")), sum(seconds("qformer"))
        found = {
            "preprocess": preprocess,
            "vision": vision,
            "qformer": qformer,
            "prefill": prefill,
            "host": total - preprocess - vision - qformer - prefill - sum(decode),
            "time_to_first_token": first,
            "total": total,
        }
        if decode:
            found["decode"] = sum(decode) / len(decode)
            found["time_per_output_token"] = (total - first) / len(decode)
        return Timed({name: 1e3 * value for name, value in found.items()}, token_ids)


def check_compiler(name: str) -> None:
    """Compile something small, before anything large is loaded; raises UsageError where that fails."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.ones(8))
    except Exception as error:  # there are as many reasons as there are compilers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"--against {name}: torch.compile doesn't work here ({reason}); it needs a C++ compiler such as g++: "
            "install one, or leave this contender out"
        ) from None
