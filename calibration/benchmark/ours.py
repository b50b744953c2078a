"""A bundle as what is timed."""

from __future__ import annotations

import time

from catp.calibration.benchmark.subject import OURS, Case, Question, Sample, make_sample
from catp.runtime.bundle import Bundle
from catp.runtime.engines.base import Provider
from catp.runtime.manifest import Positions
from catp.runtime.pipeline import Pipeline


class BundleSubject:
    """The runtime's pipeline, with nothing in its way: no tokenizer, no end of text."""

    def __init__(
        self, bundle: Bundle, provider: Provider, positions: Positions | None = None, name: str = OURS
    ) -> None:
        """Args: positions: None: the bundle's default."""
        self.name = name
        manifest = bundle.manifest
        endless = manifest.text.model_copy(update={"eos_token_ids": ()})
        self.pipeline = Pipeline(Bundle(bundle.path, manifest.model_copy(update={"text": endless})), provider)
        self._positions = positions

    def run(self, question: Question, case: Case) -> Sample:
        pipeline = self.pipeline
        kept = pipeline.num_kept(case.ratio)
        clock = [time.perf_counter()]
        pixel_values = pipeline.preprocess(question.images[: case.batch])
        clock.append(time.perf_counter())
        encoded = pipeline.encode(pixel_values)
        pipeline.provider.synchronize()  # so that each stage's time is its own
        clock.append(time.perf_counter())
        pruned = pipeline.prune(encoded, kept)
        pipeline.provider.synchronize()
        clock.append(time.perf_counter())
        prompts = [question.prompt_ids] * case.batch
        generation = pipeline.decode(pruned, prompts, question.new_tokens, self._positions)
        clock.append(time.perf_counter())
        return make_sample(
            clock,
            generation.prefill_seconds,
            generation.decode_seconds,
            generation.token_ids,
            generation.first_token_seconds,
        )
