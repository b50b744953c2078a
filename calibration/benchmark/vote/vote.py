"""The cost of the vote: the Q-Former graph with it against the same graph without, in interleaved rounds."""

from __future__ import annotations

import time
from collections.abc import Mapping

from catp.calibration.benchmark.contenders.bundle_subject import encode_asked
from catp.calibration.benchmark.contenders.registry import check_installed
from catp.calibration.benchmark.contenders.subject import OURS, Case, Subject, Timed, TimedInput
from catp.calibration.benchmark.timing.conditions import Setup
from catp.calibration.benchmark.timing.rounds import Measured, Rounds, measure, warm_up
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import DEFAULT
from catp.runtime.image_sides.query_tokens import Encoded
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import Engine
from catp.runtime.providers.onnx_runtime import OrtProvider

MOST_ROUNDS = 20
VOTING, VOTELESS = "with its vote", "without a vote"
READ = ("image_embeds", "instruction_ids", "instruction_mask")
"""Inputs of a Q-Former that votes for nothing, as far as it has them."""


def why_not(manifest: Manifest, setup: Setup) -> str | None:
    """The reason that keeps the vote's cost from being measured; None where nothing does."""
    if manifest.vote is None:
        return "this bundle has no vote"
    if not manifest.writes_text:
        return "it is worked out against a language model's prefill, and this bundle scores texts"
    if manifest.model.language == "encoder-decoder" and setup.new_tokens == 1:
        return (
            "prefill is an encoder's pass and a decoder's step, which are told apart by the steps after it; give "
            "--new-tokens 2 or more"
        )
    if manifest.vote.method == "none":
        return "this bundle was exported with --method none, and has no vote"
    if not any(setup.ratios):
        return "no ratio above 0 was timed"
    if setup.provider != "cpu":
        return f"the graph without a vote is run by ONNX Runtime on a CPU, and this is provider {setup.provider}"
    try:
        check_installed("the graph without a vote", "export,cpu", "onnx", "onnx_ir")
    except UsageError as error:
        return str(error)
    return None


def time_vote(pipeline: Pipeline, timed_input: TimedInput, setup: Setup, rounds: int) -> Measured:
    """Time the Q-Former alone: for each batch once without a vote, and with it at every ratio above 0.

    Samples have one stage, "qformer". Loads the graph without a vote, which has the weights of the other.

    Args:
        pipeline: of a bundle for which `why_not` says nothing.
        rounds: that the benchmark took; there are at most MOST_ROUNDS here.
    """
    from catp.calibration.benchmark.vote.without_vote import without_vote  # it needs onnx, which nothing else here does

    provider, bundle = OrtProvider("cpu", setup.threads), pipeline.bundle
    spec = bundle.manifest.graphs["qformer_voting"]
    graph = without_vote(bundle.graph_file("qformer_voting"))
    purpose = spec.quantization.purpose if spec.quantization else None
    engine = provider.engine_in_memory(graph, bundle.path, purpose)
    schedule = setup.schedule(setup.cases(OURS)[0])  # of an encoder that prunes, the one that leaves most
    wish = DEFAULT if schedule is None else schedule.wish
    encoded = {}
    for size in setup.batches:
        pixel_values = pipeline.preprocess(timed_input.images[: size * setup.pictures])
        encoded[size] = encode_asked(pipeline, pixel_values, timed_input, wish)
    subjects: dict[str, Subject] = {VOTING: _Voting(pipeline, encoded), VOTELESS: _Voteless(engine, encoded)}
    cases = [
        case
        for size in setup.batches
        for case in (Case(size, VOTELESS, 0.0), *(Case(size, VOTING, ratio) for ratio in setup.ratios if ratio))
    ]
    for case in cases:
        warm_up(subjects[case.subject], timed_input, [case], setup.warmup)
    return measure(subjects, timed_input, cases, Rounds(count=min(rounds, MOST_ROUNDS)), setup.seed)


class _Voting:
    """The bundle's own graph."""

    name = VOTING

    def __init__(self, pipeline: Pipeline, encoded: Mapping[int, Encoded]) -> None:
        self._pipeline, self._encoded = pipeline, encoded

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        started = time.perf_counter()
        self._pipeline.prune(self._encoded[case.batch], self._pipeline.num_kept(case.ratio))
        return _sample(started)


class _Voteless:
    """The graph without a vote; it reads nothing but the image, and the prompt where its Q-Former does."""

    name = VOTELESS

    def __init__(self, engine: Engine, encoded: Mapping[int, Encoded]) -> None:
        self._engine, self._encoded = engine, encoded

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        started = time.perf_counter()
        encoded = self._encoded[case.batch]
        self._engine.bind({name: encoded[name] for name in READ if name in encoded}).run()
        return _sample(started)


def _sample(started: float) -> Timed:
    milliseconds = 1e3 * (time.perf_counter() - started)
    return Timed({"qformer": milliseconds, "total": milliseconds}, [])
