"""Whether pruning pays here, and from where on it does: from the samples of a benchmark and of its vote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from catp.calibration.benchmark.contenders.subject import OURS, Case
from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import Cost
from catp.calibration.benchmark.costs.geometry import EncoderDecoderGeometry, Geometry, LanguageGeometry
from catp.calibration.benchmark.rates import Rates, best_rates
from catp.calibration.benchmark.timing.conditions import Setup
from catp.calibration.benchmark.timing.intervals import MedianDifference, median_difference
from catp.calibration.benchmark.timing.rounds import Measured
from catp.calibration.benchmark.timing.summary import percentile
from catp.calibration.benchmark.vote.break_even import (
    LARGEST_PROMPT,
    BreakEven,
    Grows,
    Payoff,
    PrefillModel,
    Speed,
    thresholds,
    verdict,
)
from catp.calibration.benchmark.vote.encoder_prefill import EncoderPrefillModel
from catp.calibration.benchmark.vote.vote import VOTELESS, VOTING
from catp.runtime.bundle.manifest import Manifest


def find_break_even(
    manifest: Manifest,
    geometry: Geometry,
    setup: Setup,
    costs: Sequence[Cost],
    rates: tuple[Rates, Rates],
    measured: Measured,
    votes: Measured,
) -> BreakEven:
    """For every batch and every ratio above 0.

    Args:
        manifest: of a bundle for which `why_not` says nothing.
        costs: one of each batch and ratio, of the schedule that the vote was timed with.
        rates: of the machine, before and after.
        measured: the benchmark's samples.
        votes: those of the Q-Former with and without its vote, as `time_vote` takes them.
    """
    language, queries = geometry.language, manifest.pruning.num_query_tokens * setup.pictures
    model = prefill_model(manifest, language)
    best = best_rates(rates)
    traffic = best.bytes_per_second
    own = max(_own_rate(model, cost, setup, measured) for cost in costs)
    limit = max(own, best.operations_per_second(costs[0].stages["prefill"].integer))
    most = manifest.text.max_positions
    largest_prompt = LARGEST_PROMPT if most is None else most - queries - setup.new_tokens + 1
    payoffs = []
    for ratio in filter(None, setup.ratios):
        spent = {batch: _spent(votes, batch, ratio, setup.seed) for batch in setup.batches}
        medians = {batch: max(0.0, vote.median) for batch, vote in spent.items()}
        for cost in (cost for cost in costs if cost.ratio == ratio):
            pruned = _case(cost)
            workload = Workload(cost.batch, cost.num_kept, setup.prompt_tokens, setup.new_tokens)
            unpruned = replace(pruned, ratio=0.0)
            saved = median_difference(
                measured.values(unpruned, "prefill"), measured.values(pruned, "prefill"), setup.seed
            )
            # A vote that is lost in the noise would pay from anywhere on.
            at_own, at_limit = (
                thresholds(model, queries, workload, medians, largest_prompt, Speed(flops, traffic))
                if spent[cost.batch].bounds[0] > 0
                else None
                for flops in (own, limit)
            )
            payoffs.append(
                Payoff(
                    batch=cost.batch,
                    ratio=ratio,
                    num_kept=cost.num_kept,
                    vote_ms=spent[cost.batch],
                    vote_of_total=medians[cost.batch] / _median(measured, pruned, "total"),
                    saved_ms=saved,
                    modelled_ms=model.saved_ms(language, queries, workload, Speed(own, traffic)),
                    pays=verdict(spent[cost.batch], saved),
                    at_own_rate=at_own,
                    at_limit=at_limit,
                )
            )
    return BreakEven(
        rounds=len(votes.yardstick_ms),
        own_gflops=own / 1e9,
        limit_gflops=limit / 1e9,
        gbytes=traffic / 1e9,
        largest_prompt=largest_prompt,
        payoffs=tuple(sorted(payoffs, key=lambda payoff: (payoff.batch, payoff.ratio))),
    )


def prefill_model(manifest: Manifest, language: Any) -> Grows:
    """The prefill of a bundle with a vote and a language model."""
    if isinstance(language, EncoderDecoderGeometry):
        return EncoderPrefillModel(language, manifest.graphs["text_encoder"], manifest.graphs["text_decoder"])
    assert isinstance(language, LanguageGeometry)
    return PrefillModel(language, manifest.graphs["language_model"])


def _own_rate(model: Grows, cost: Cost, setup: Setup, measured: Measured) -> float:
    """Operations per second of what reads the prompt.

    The decoder's first step is one like those after it, which are timed: what it took is no time of the encoder's.
    """
    case = _case(cost)
    prefill = _median(measured, case, "prefill")
    if not isinstance(model, EncoderPrefillModel):
        return cost.stages["prefill"].flops / (1e-3 * prefill)
    workload = Workload(cost.batch, cost.num_kept, setup.prompt_tokens, setup.new_tokens)
    encoder, _ = model.passes(model.language, workload)
    # Of a tiny encoder, noise can be as much as it takes: it took a tenth of both at least.
    return encoder.flops / (1e-3 * max(prefill - _median(measured, case, "decode"), prefill / 10))


def _case(cost: Cost) -> Case:
    return Case(cost.batch, OURS, cost.ratio, cost.encoder_flops)


def _spent(votes: Measured, batch: int, ratio: float, seed: int) -> MedianDifference:
    with_vote = votes.values(Case(batch, VOTING, ratio), "qformer")
    return median_difference(with_vote, votes.values(Case(batch, VOTELESS, 0.0), "qformer"), seed)


def _median(measured: Measured, case: Case, stage: str) -> float:
    """Milliseconds."""
    return percentile(measured.values(case, stage), 50)
