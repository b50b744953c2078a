"""Answers of Hugging Face's `generate()`, and how long each part of the model took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from catp.calibration.benchmark.contenders.pytorch.loading import TorchContender
from catp.calibration.benchmark.contenders.subject import Case, Timed, TimedInput


class TorchAnswers(TorchContender):
    """Greedy, with the attention and the cache that transformers chooses, all query tokens or image tokens.

    The parts of the model, in the order in which they run, are `vision`, `qformer` and `text_encoder` where there are
    some, and `decoder`. In a contender that compiles, each is compiled when it is first called.
    """

    def prepare(self, compiled: bool) -> None:
        self._began: dict[str, list[float]] = {}
        self._ended: dict[str, list[float]] = {}
        self.forget_end()
        for part, module in self.parts().items():
            if compiled:
                module.forward = torch.compile(module.forward)  # not the call: its hooks are not to be compiled
            self._watch(part, module)

    def forget_end(self) -> None:
        """An end token must end nothing, and must not be forbidden either: that would change the tokens."""
        raise NotImplementedError

    def parts(self) -> Mapping[str, Any]:
        """Modules by part."""
        raise NotImplementedError

    def generate(self, pixel_values: torch.Tensor, timed_input: TimedInput, batch: int) -> torch.Tensor:
        """Token ids int64 [B,S], the last of which are the answers."""
        raise NotImplementedError

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        """Answer about the first `case.batch` images, from pictures in memory to token ids in host memory."""
        self._began.clear()
        self._ended.clear()
        started = time.perf_counter()
        pixel_values = self.preprocess(timed_input.images[: case.batch])
        with torch.inference_mode():
            output = self.generate(pixel_values, timed_input, case.batch)
        token_ids = output[:, -timed_input.new_tokens :].tolist()
        return self._sample(started, time.perf_counter(), token_ids)

    def _watch(self, part: str, module: torch.nn.Module) -> None:
        """Note when a part of the model begins and ends; on a CPU that is when its work is done."""
        began, ended = self._began, self._ended
        module.register_forward_pre_hook(lambda *_: began.setdefault(part, []).append(time.perf_counter()))
        module.register_forward_hook(lambda *_: ended.setdefault(part, []).append(time.perf_counter()))

    def _sample(self, started: float, finished: float, token_ids: list[list[int]]) -> Timed:
        spans = {
            part: [end - begin for begin, end in zip(self._began[part], self._ended[part])] for part in self._began
        }
        first_step, *decode = spans["decoder"]
        total = finished - started
        # What generate() does between the parts is host time; here the first token's moment is known.
        first = self._ended["decoder"][0] - started
        found: dict[str, float] = {
            "preprocess": self._began["vision"][0] - started,
            **{stage: sum(spans[stage]) for stage in ("vision", "qformer") if stage in spans},
            "prefill": first_step + sum(spans.get("text_encoder", ())),
        }
        found["host"] = total - sum(found.values()) - sum(decode)
        found |= {"time_to_first_token": first, "total": total}
        if decode:
            found["decode"] = sum(decode) / len(decode)
            found["time_per_output_token"] = (total - first) / len(decode)
        return Timed({name: 1e3 * value for name, value in found.items()}, token_ids)
