"""The report of a benchmark: what was measured, on what, how, and how sure it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from catp.calibration.benchmark.contenders.described import Described
from catp.calibration.benchmark.contenders.subject import OURS, SAME_SCORE, STAGES, WHOLE, Case, Timed, prunes
from catp.calibration.benchmark.costs.cost import Cost
from catp.calibration.benchmark.kernel_times import KernelTimes
from catp.calibration.benchmark.machine import Machine
from catp.calibration.benchmark.rates import Rates, best_rates
from catp.calibration.benchmark.timing.conditions import Load, Setup
from catp.calibration.benchmark.timing.intervals import Ratio, paired_ratio
from catp.calibration.benchmark.timing.rounds import Measured
from catp.calibration.benchmark.timing.summary import PERCENTILES, Summary, needed, summarize
from catp.calibration.benchmark.vote.break_even import BreakEven
from catp.runtime.bundle.strict import Strict
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import is_dir

NOISY = 0.1
"""Coefficient of variation of the baseline's total above which a run is called noisy."""
CROWDED = 0.02
"""Share of the CPUs' time that others may use before a run is called noisy."""


class Result(Strict):
    """One setting."""

    subject: str
    batch: int
    ratio: float
    encoder_flops: float | None = Field(
        default=None,
        description="share of the dense encoder's work that was asked for; setup.schedules has what is kept",
    )
    num_kept: int
    milliseconds: dict[str, Summary]
    tokens_per_second: float | None = Field(
        description="new tokens of the batch over the median total; None where texts are scored"
    )
    images_per_second: float = Field(description="images of the batch over the median total")
    roofline: dict[str, float] = Field(
        description="the least time that the machine allows, over the median; by stage, of bundles alone"
    )
    token_ids: list[list[int]] = Field(description="none where texts are scored")
    scores: list[list[float]] = Field(default=[], description="of each request's texts; none where text is written")
    agreeing_tokens: int | None = Field(
        description="leading tokens equal to those of the first bundle that was asked the same, by ratio and schedule "
        "(ours where it was), fewest of all rows; None of that bundle itself, and where there is none"
    )
    score_difference: float | None = Field(
        default=None, description="largest difference of a score from the one of that same bundle; None as above"
    )
    repeatable: bool = Field(description="whether every round gave the same tokens, or scores but for rounding")
    samples_ms: dict[str, list[float]] = Field(description="one per round")

    @property
    def case(self) -> Case:
        return Case(self.batch, self.subject, self.ratio, self.encoder_flops)


class Speedup(Strict):
    """How many times as long the baseline takes, paired by round; above 1 this setting is faster."""

    subject: str
    ratio: float
    encoder_flops: float | None = None
    batch: int
    baseline: str
    baseline_ratio: float
    baseline_encoder_flops: float | None = None
    by_stage: dict[str, Ratio]

    @property
    def case(self) -> Case:
        return Case(self.batch, self.subject, self.ratio, self.encoder_flops)

    @property
    def against(self) -> Case:
        """The baseline."""
        return Case(self.batch, self.baseline, self.baseline_ratio, self.baseline_encoder_flops)


class BenchmarkReport(Strict):
    """The whole of report.json."""

    schema_version: Literal[1] = 1
    created: str
    bundle: Described
    bundles: dict[str, Described] = Field(default={}, description="those among the contenders, by name")
    setup: Setup
    machine: Machine
    load_average_before: float | None
    load_average_after: float | None
    rates_before: Rates
    rates_after: Rates
    costs: tuple[Cost, ...]
    bundle_costs: dict[str, tuple[Cost, ...]] = Field(default={}, description="of bundles among the contenders")
    loads: tuple[Load, ...]
    rounds: int
    seconds: float = Field(description="of all rounds, pauses included")
    results: tuple[Result, ...]
    speedups: tuple[Speedup, ...]
    yardstick_ms: list[float] = Field(description="a fixed piece of work in every round: how fast the machine was")
    cpu_of_others: float | None = Field(
        description="CPU time of other processes during the rounds, over that of all CPUs; None where it is unknown"
    )
    noisy: bool
    notes: tuple[str, ...]
    break_even: BreakEven | None = Field(
        default=None, description="None where the vote could not be timed; a note says why"
    )
    kernels: tuple[KernelTimes, ...] = Field(default=(), description="of bundles, where they were asked for")

    def result(self, case: Case) -> Result:
        return next(result for result in self.results if result.case == case)

    def cost(self, batch: int, ratio: float) -> Cost:
        return next(cost for cost in self.costs if (cost.batch, cost.ratio) == (batch, ratio))

    @property
    def has_query_tokens(self) -> bool:
        """Whether there are any, and a ratio of them that is removed."""
        return any("qformer" in cost.stages for cost in self.costs)

    @property
    def prunes_inside(self) -> bool:
        """Whether a vision encoder does."""
        return any(bundle.encoder != "dense" for bundle in (self.bundle, *self.bundles.values()))

    def encoder_of(self, case: Case) -> str:
        """The vision encoder in a setting: dense, the share of work that it is left, or dynamic."""
        schedule = self.setup.schedule(case)
        if schedule is not None:
            return f"{100 * schedule.share:.0f} %"
        bundle = {OURS: self.bundle, **self.bundles}.get(case.subject)
        return "dense" if bundle is None or bundle.encoder == "dense" else "dynamic"

    def is_over_dense(self, speedup: Speedup) -> bool:
        """Whether an encoder that prunes is compared with one that is dense, or else with one that prunes less."""
        ours, theirs = self.encoder_of(speedup.case), self.encoder_of(speedup.against)
        if speedup.subject == speedup.baseline:
            return speedup.encoder_flops != speedup.baseline_encoder_flops
        return ours != "dense" and theirs == "dense" and prunes(speedup.baseline)


def make_report(
    bundles: Mapping[str, Described],
    setup: Setup,
    machine: Machine,
    load_averages: tuple[float | None, float | None],
    rates: tuple[Rates, Rates],
    costs: Mapping[str, Sequence[Cost]],
    loads: Sequence[Load],
    measured: Measured,
    break_even: BreakEven | None = None,
    remarks: Sequence[str] = (),
    kernels: Sequence[KernelTimes] = (),
) -> BenchmarkReport:
    """Everything that follows from the samples.

    Args:
        bundles: by subject, ours among them.
        costs: of each bundle, one of every batch and ratio.
        remarks: notes beyond those that the samples call for.
    """
    best = best_rates(rates)
    peers = _peers(setup)
    by_case = {
        Case(cost.batch, name, cost.ratio, cost.encoder_flops): cost for name, found in costs.items() for cost in found
    }
    cases = sorted((case for name in (OURS, *setup.against) for case in setup.cases(name)), key=lambda case: case.batch)
    results = tuple(_result(case, measured, by_case, best, peers.get(case), setup.pictures) for case in cases)
    rounds = len(measured.yardstick_ms)
    others = None if measured.others_seconds is None else measured.others_seconds / measured.seconds / machine.cpus
    noisy = noise(results, measured, others)
    return BenchmarkReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=bundles[OURS],
        bundles={name: bundle for name, bundle in bundles.items() if name != OURS},
        setup=setup,
        machine=machine,
        load_average_before=load_averages[0],
        load_average_after=load_averages[1],
        rates_before=rates[0],
        rates_after=rates[1],
        costs=tuple(costs[OURS]),
        bundle_costs={name: tuple(found) for name, found in costs.items() if name != OURS},
        loads=tuple(loads),
        rounds=rounds,
        seconds=measured.seconds,
        results=results,
        speedups=tuple(_speedups(bundles, setup, measured)),
        yardstick_ms=_rounded(measured.yardstick_ms),
        cpu_of_others=others,
        noisy=bool(noisy),
        notes=(*noisy, *_remarks(bundles, setup, results, peers, rounds, load_averages[0], rates), *remarks),
        break_even=break_even,
        kernels=tuple(kernels),
    )


def read_report(path: Path) -> BenchmarkReport:
    """A report that catp-bench wrote.

    Raises:
        UsageError: there is no such file, or it is not one.
    """
    if is_dir(path) or not path.is_file():
        raise UsageError(f"{path}: no such file; give a report that catp-bench run wrote with -o")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise CatpError(f"{path}: can't be read ({error})") from None
    try:
        return BenchmarkReport.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "report"
        raise UsageError(
            f"{path}: not a report that this catp-bench can read ({where}: {first['msg']}); measure it again with "
            "catp-bench run -o"
        ) from None


def _peers(setup: Setup) -> dict[Case, Case]:
    """For each setting the first of a bundle in which the same is computed: at the same ratio, by the same schedule."""
    first: dict[tuple[object, ...], Case] = {}
    found = {}
    for name in sorted((OURS, *setup.against), key=lambda name: not prunes(name)):
        for case in setup.cases(name):
            schedule = setup.schedule(case)
            key = case.batch, case.ratio, schedule and (schedule.rule, schedule.layers, schedule.kept_tokens)
            if prunes(name):
                first.setdefault(key, case)
            if key in first:
                found[case] = first[key]
    return found


def _result(
    case: Case, measured: Measured, costs: Mapping[Case, Cost], rates: Rates, peer: Case | None, pictures: int
) -> Result:
    """
    Args:
        peer: whose tokens or scores are to be the same.
        pictures: of one request.
    """
    stages = {stage: measured.values(case, stage) for stage in (*STAGES, *WHOLE)}
    stages = {stage: values for stage, values in stages.items() if values}
    summaries = {stage: summarize(values) for stage, values in stages.items()}
    samples = measured.samples[case]
    token_ids = samples[0].token_ids
    total = summaries["total"].p50 / 1e3
    theirs = samples[0] if peer is None else measured.samples[peer][0]
    compared = peer not in (None, case)
    known = costs[case].stages if case in costs else {}
    least = {stage: rates.least_ms(part) for stage, part in known.items()}
    return Result(
        subject=case.subject,
        batch=case.batch,
        ratio=case.ratio,
        encoder_flops=case.encoder_flops,
        num_kept=next(cost.num_kept for cost in costs.values() if (cost.batch, cost.ratio) == (case.batch, case.ratio)),
        milliseconds=summaries,
        tokens_per_second=sum(len(row) for row in token_ids) / total if token_ids else None,
        images_per_second=case.batch * pictures / total,
        roofline={stage: least[stage] / summaries[stage].p50 for stage in least if stage in summaries},
        token_ids=token_ids,
        scores=samples[0].scores,
        agreeing_tokens=min(map(_agreeing, token_ids, theirs.token_ids)) if compared and token_ids else None,
        score_difference=_difference(samples[0], theirs) if compared and samples[0].scores else None,
        repeatable=all(
            sample.token_ids == token_ids and _difference(sample, samples[0]) <= SAME_SCORE for sample in samples
        ),
        samples_ms={stage: _rounded(values) for stage, values in stages.items()},
    )


def _difference(one: Timed, other: Timed) -> float:
    """The largest difference between their scores; 0 where there are none."""
    pairs = [pair for rows in zip(one.scores, other.scores, strict=True) for pair in zip(*rows, strict=True)]
    return max((abs(a - b) for a, b in pairs), default=0.0)


def _agreeing(ids: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    same = [a == b for a, b in zip(ids, others)]
    return same.index(False) if False in same else len(same)


def _pairs(bundles: Mapping[str, Described], setup: Setup, batch: int) -> list[tuple[Case, Case]]:
    """Settings of each bundle with what they are compared with: the same unpruned, where the encoder prunes every dense
    one, unpruned and at the same ratio (or else its own largest schedule), ours at the same ratio, and each runtime.
    """
    pairs = []
    names = (OURS, *filter(prunes, setup.against))
    dense = [name for name in names if bundles[name].encoder == "dense"]
    reference = OURS if OURS in dense or not dense else dense[0]
    for name in names:
        cases = [case for case in setup.cases(name) if case.batch == batch]
        unpruned = [replace(case, ratio=0.0) for case in cases]
        pairs += [pair for pair in zip(cases, unpruned) if pair[0] != pair[1]]
        if name in dense:
            pairs += [(case, Case(batch, reference, case.ratio)) for case in cases if name != reference]
        else:
            ratios = [(case, ratio) for case in cases for ratio in dict.fromkeys((0.0, case.ratio))]
            pairs += [(case, Case(batch, other, ratio)) for other in dense for case, ratio in ratios]
            if not dense:
                pairs += [(case, cases[0]) for case in cases if case.encoder_flops != cases[0].encoder_flops]
            if OURS not in (name, *dense):
                ours = set(setup.cases(OURS))
                pairs += [(case, twin) for case in cases if (twin := replace(case, subject=OURS)) in ours]
        pairs += [
            (case, Case(batch, runtime, 0.0)) for runtime in setup.against if not prunes(runtime) for case in cases
        ]
    return pairs


def _speedups(bundles: Mapping[str, Described], setup: Setup, measured: Measured) -> list[Speedup]:
    found = []
    for batch in setup.batches:
        for case, baseline in _pairs(bundles, setup, batch):
            by_stage = {}
            for stage in (*STAGES, *WHOLE):
                values, others = measured.values(case, stage), measured.values(baseline, stage)
                # A stage that takes no time (host, on a fast loop) can't be a divisor.
                if values and others and min(values) > 0 and min(others) > 0:
                    by_stage[stage] = paired_ratio(others, values, setup.seed)
            found.append(
                Speedup(
                    subject=case.subject,
                    ratio=case.ratio,
                    encoder_flops=case.encoder_flops,
                    batch=batch,
                    baseline=baseline.subject,
                    baseline_ratio=baseline.ratio,
                    baseline_encoder_flops=baseline.encoder_flops,
                    by_stage=by_stage,
                )
            )
    return found


def noise(results: Sequence[Result], measured: Measured, others: float | None) -> list[str]:
    """Notes on why not to believe what was measured.

    Args:
        results: whose baseline's spread is looked at.
        others: share of the CPUs that other processes used meanwhile, of 1; None: unknown.
    """
    found = []
    if others is not None and others > CROWDED:
        found.append(
            f"noisy: other processes used {100 * others:.0f} % of the CPUs; runtimes suffer from that differently, so "
            "not even paired ratios hold: measure again on a machine that does nothing else"
        )
    for result in results:
        if result.subject == OURS and result.ratio == 0 and result.encoder_flops == results[0].encoder_flops:
            variation = result.milliseconds["total"].variation or 0.0
            if variation > NOISY:
                found.append(
                    f"noisy: the total of the baseline ({result.case}) varies by {100 * variation:.0f} % "
                    f"(standard deviation over mean; above {100 * NOISY:.0f} % quote paired ratios only, no times)"
                )
    variation = summarize(measured.yardstick_ms).variation or 0.0
    if variation > NOISY:
        found.append(
            f"noisy: the yardstick, the same work in every round, varies by {100 * variation:.0f} %: something else "
            "used the machine"
        )
    return found


def _remarks(
    bundles: Mapping[str, Described],
    setup: Setup,
    results: Sequence[Result],
    peers: Mapping[Case, Case],
    rounds: int,
    load: float | None,
    rates: tuple[Rates, Rates],
) -> list[str]:
    found = []
    missing = [percent for percent in PERCENTILES if rounds < needed(percent)]
    if missing:
        listed = ", ".join(f"p{percent} ({needed(percent)})" for percent in missing)
        found.append(f"{rounds} samples are too few for some percentiles, which are missing: {listed}")
    bundle = bundles[OURS]
    if bundle.random_weights:
        found.append(
            f"the weights of {bundle.model.id} are random: times are those of its sizes; what it keeps and answers "
            "means nothing"
        )
    for name in setup.against:
        agreeing = {r.case: r.agreeing_tokens for r in results if r.subject == name and r.agreeing_tokens is not None}
        differing = [case for case, tokens in agreeing.items() if tokens < setup.new_tokens]
        if differing:
            earliest = min(differing, key=agreeing.__getitem__)
            whose = "ours" if peers[earliest].subject == OURS else f"those of {peers[earliest].subject}"
            same = "at the same ratio" + (" and schedule" if name in setup.schedules else "")
            found.append(
                f"{name}: other tokens than {whose} {same if prunes(name) else 'unpruned'} in {len(differing)} of "
                f"{len(agreeing)} settings; earliest after {agreeing[earliest]} of {setup.new_tokens} ({earliest})"
            )
        unlike = {r.case: r.score_difference for r in results if r.subject == name and r.score_difference is not None}
        if unlike and max(unlike.values()) > SAME_SCORE:
            worst = max(unlike, key=unlike.__getitem__)
            found.append(
                f"{name}: scores differ from those of {peers[worst].subject} by up to {unlike[worst]:.3g} ({worst})"
            )
    if setup.schedules and not any(bundle.encoder == "dense" for bundle in bundles.values()):
        found.append(
            "no dense encoder was timed in the same rounds, so what pruning inside one gains is not known: name a "
            "bundle of the same checkpoint that has one with --dense"
        )
    answers = "tokens" if setup.texts is None else "scores"
    found += [f"{result.case}: its {answers} differ from round to round" for result in results if not result.repeatable]
    if load is not None and load > 0.5:
        found.append(f"the machine was busy before anything was loaded: load average {load:.1f}")
    before, after = rates
    if abs(after.gflops / before.gflops - 1) > NOISY:
        found.append(
            f"the machine's matrix-product rate was {before.gflops:.0f} GFLOP/s before and {after.gflops:.0f} after: "
            "percentages of the roofline are as uncertain"
        )
    return found


def _rounded(values: Sequence[float]) -> list[float]:
    """To a tenth of a microsecond, which is finer than the clock."""
    return [round(value, 4) for value in values]
