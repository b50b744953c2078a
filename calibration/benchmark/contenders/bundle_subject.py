"""A bundle as what is timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from catp.calibration.benchmark.contenders.subject import (
    OURS,
    Case,
    Timed,
    TimedInput,
    draw_words,
    make_sample,
    make_timed_input,
)
from catp.calibration.benchmark.costs.geometry import Geometry
from catp.calibration.benchmark.schedules import Schedule
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import INSTRUCTION_TOKENIZER_FILE, Positions
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded
from catp.runtime.image_sides.voted_queries import VotedQueries
from catp.runtime.inputs.text import TextCodec
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
        frames, queries = pipeline.manifest.model.frames or 1, pipeline.manifest.tokens
        pixel_values = pipeline.preprocess(timed_input.images[: frames * case.batch])
        clock.append(time.perf_counter())
        encoded, vision = timed(pipeline.provider, lambda: encode_asked(pipeline, pixel_values, timed_input, wish))
        clock.append(time.perf_counter())
        pruned, qformer = timed(pipeline.provider, lambda: pipeline.prune(encoded, kept).joined(frames, queries))
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


def make_asked_input(
    bundle: Bundle, geometry: Geometry, batch: int, prompt_tokens: int, new_tokens: int, seed: int
) -> TimedInput:
    """As `make_timed_input`; where the Q-Former reads the prompt too, with as many tokens of its own vocabulary.

    Those that its tokenizer puts around a text are among them.

    Raises:
        UsageError: prompt and answer do not fit the model's positions, or the prompt is none that the Q-Former takes.
    """
    manifest = bundle.manifest
    found = make_timed_input(manifest, geometry.language.vocabulary, batch, prompt_tokens, new_tokens, seed)
    if not manifest.reads_instruction:
        return found
    most = manifest.text.max_instruction
    if most is not None and prompt_tokens > most:
        raise UsageError(f"{prompt_tokens} prompt tokens: this model's Q-Former takes {most}; give fewer")
    marks = TextCodec(bundle.path / INSTRUCTION_TOKENIZER_FILE, manifest.text).encode("")
    if prompt_tokens <= len(marks):
        raise UsageError(f"{prompt_tokens} prompt tokens: {len(marks)} frame a prompt of the Q-Former; give more")
    assert geometry.qformer is not None
    drawn = np.random.default_rng(seed)
    words = draw_words(drawn, prompt_tokens - len(marks), geometry.qformer.vocabulary, set(marks))
    return replace(found, instruction_ids=(*marks[:1], *words, *marks[1:]))


def encode_asked(
    pipeline: Pipeline, pixel_values: np.ndarray, timed_input: TimedInput, encoder: EncoderWish = DEFAULT
) -> Encoded:
    """Images encoded, float32 [B, 3, H, W], with the same prompt for each where the Q-Former reads it."""
    if not timed_input.instruction_ids:
        return pipeline.encode(pixel_values, encoder=encoder)
    side = pipeline.image_side
    assert isinstance(side, VotedQueries)
    ids = np.tile(np.array(timed_input.instruction_ids, np.int64), (len(pixel_values), 1))
    return {**side.see(pixel_values, encoder), "instruction_ids": ids, "instruction_mask": np.ones_like(ids)}


def timed(provider: Provider, stage: Callable[[], T]) -> tuple[T, float]:
    """A stage's result, all of it done, and its milliseconds by the provider's own clock."""
    began = provider.moment()
    result = stage()
    ended = provider.moment()
    provider.synchronize()
    return result, ended.milliseconds_since(began)
