"""A bundle as what is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from catp.calibration.benchmark.contenders.subject import OURS, Case, Timed, TimedInput, make_sample
from catp.calibration.benchmark.schedules import Schedule
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Positions
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import Provider

T = TypeVar("T")


class BundleSubject:
    """The runtime's pipeline, with nothing in its way: no tokenizer, no end of text."""

    def __init__(
        self,
        bundle: Bundle,
        provider: Provider,
        positions: Positions | None = None,
        name: str = OURS,
        schedules: Sequence[Schedule] = (),
    ) -> None:
        """
        Args:
            positions: None: the bundle's default.
            schedules: those of its encoder that cases ask for.
        """
        self.name = name
        manifest = bundle.manifest
        endless = manifest.text.model_copy(update={"eos_token_ids": ()})
        self.pipeline = Pipeline(Bundle(bundle.path, manifest.model_copy(update={"text": endless})), provider)
        self._positions = positions
        self._wishes: dict[float | None, EncoderWish] = {None: DEFAULT, **{s.flops: s.wish for s in schedules}}

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        pipeline = self.pipeline
        kept, wish = pipeline.num_kept(case.ratio), self._wishes[case.encoder_flops]
        clock = [time.perf_counter()]
        pixel_values = pipeline.preprocess(timed_input.images[: case.batch])
        clock.append(time.perf_counter())
        encoded, vision = timed(pipeline.provider, lambda: pipeline.encode(pixel_values, encoder=wish))
        clock.append(time.perf_counter())
        pruned, qformer = timed(pipeline.provider, lambda: pipeline.prune(encoded, kept))
        clock.append(time.perf_counter())
        prompts = [timed_input.prompt_ids] * case.batch
        generation = pipeline.decode(pruned, prompts, timed_input.new_tokens, self._positions)
        clock.append(time.perf_counter())
        return make_sample(
            clock,
            generation.prefill_seconds,
            generation.decode_seconds,
            generation.token_ids,
            generation.first_token_seconds,
            {"vision": vision, "qformer": qformer},
            votes=pipeline.manifest.vote is not None,
        )


def timed(provider: Provider, stage: Callable[[], T]) -> tuple[T, float]:
    """A stage's result, all of it done, and its milliseconds by the provider's own clock."""
    began = provider.moment()
    result = stage()
    ended = provider.moment()
    provider.synchronize()
    return result, ended.milliseconds_since(began)
