"""A BLIP that answers questions or writes captions, run by Hugging Face transformers in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from catp.calibration.benchmark.contenders.pytorch.answers import TorchAnswers
from catp.calibration.benchmark.contenders.subject import TimedInput

GREEDILY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}
"""Arguments of `generate()`: the largest logit, whatever else the checkpoint's configuration asks for."""


class BlipAnswers(TorchAnswers):
    """Answers or captions."""

    def forget_end(self) -> None:
        self._model.config.text_config.sep_token_id = None
        self._model.text_decoder.generation_config.eos_token_id = None

    def parts(self) -> Mapping[str, Any]:
        encoder = {"text_encoder": self._model.text_encoder} if self._kind == "question-answering" else {}
        return {"vision": self._model.vision_model, **encoder, "decoder": self._model.text_decoder}

    def generate(self, pixel_values: torch.Tensor, timed_input: TimedInput, batch: int) -> torch.Tensor:
        ids = torch.tensor([timed_input.prompt_ids] * batch)  # anew each time: generate() writes into it
        return self._model.generate(
            pixel_values=pixel_values,
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=timed_input.new_tokens,
            **GREEDILY,
        )
