"""A BLIP-2 or InstructBLIP, run by Hugging Face transformers in PyTorch, as its users run it today."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from catp.calibration.benchmark.contenders.pytorch.answers import TorchAnswers
from catp.calibration.benchmark.contenders.subject import Case, Timed, TimedInput, check_instruction
from catp.export.checkpoints.placeholder import placeholder_without_embedding
from catp.export.verification.continuations import cache_of


class QueryTokenAnswers(TorchAnswers):
    """Answers after all query tokens."""

    def forget_end(self) -> None:
        self._instructed = hasattr(self._model.qformer, "embeddings")  # of words
        for part in (self._model, self._model.language_model):
            part.generation_config.eos_token_id = None

    def parts(self) -> Mapping[str, Any]:
        language_model = self._model.language_model
        # generate() calls the encoder by itself, before the language model's first step
        encoder = {"text_encoder": language_model.get_encoder()} if self._kind == "encoder-decoder" else {}
        return {
            "vision": self._model.vision_model,
            "qformer": self._model.qformer,
            **encoder,
            "decoder": language_model,
        }

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        """Answer about the first `case.batch` images.

        Raises:
            UsageError: the checkpoint's Q-Former reads the prompt and the bundle's does not, or the reverse.
        """
        check_instruction(self._instructed, timed_input)
        with self._placeholder_id() as self._placeholder:
            return super().run(timed_input, case)

    def generate(self, pixel_values: torch.Tensor, timed_input: TimedInput, batch: int) -> torch.Tensor:
        prompt = [self._placeholder] * self._model.config.num_query_tokens + timed_input.prompt_ids
        ids = torch.tensor([prompt] * batch)
        instruction = torch.tensor([timed_input.instruction_ids] * batch)
        read = {"qformer_input_ids": instruction, "qformer_attention_mask": torch.ones_like(instruction)}
        return self._model.generate(
            pixel_values=pixel_values,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=timed_input.new_tokens,
            do_sample=False,
            num_beams=1,
            **(read if timed_input.instruction_ids else {}),
            **cache_of(self._kind),
        )

    def _placeholder_id(self) -> AbstractContextManager[int]:
        """The id that stands for a query token; the model is left as it is where it names one that has an embedding."""
        found, rows = self._model.config.image_token_index, len(self._model.get_input_embeddings().weight)
        if found is not None and 0 <= found < rows:
            return nullcontext(found)
        return placeholder_without_embedding(self._model, "image_token_index")
