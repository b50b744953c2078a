"""Reports of runs that never happened, with known truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from catp.calibration.benchmark.contenders.described import Described
from catp.calibration.benchmark.contenders.subject import OURS, Case, Timed, prunes
from catp.calibration.benchmark.costs.base import StageCost
from catp.calibration.benchmark.costs.cost import Cost
from catp.calibration.benchmark.machine import Machine
from catp.calibration.benchmark.rates import Rates
from catp.calibration.benchmark.results.report import BenchmarkReport, make_report
from catp.calibration.benchmark.schedules import Schedule
from catp.calibration.benchmark.timing.conditions import Setup
from catp.calibration.benchmark.timing.rounds import Measured
from catp.runtime.bundle.manifest import ModelSpec

MEDIANS = {"preprocess": 5.0, "vision": 250.0, "qformer": 100.0, "prefill": 80.0, "decode": 24.0, "host": 3.0}
NEW_TOKENS = 10
RATES = Rates(threads=2, gflops=200, read_gbytes=20, copy_gbytes=10)
MACHINE = Machine(
    cpu="a CPU",
    cpus=2,
    memory_bytes=1 << 34,
    governor="performance",
    turbo=False,
    platform="x",
    python="3",
    versions={},
)
BUNDLE = Described(
    path="b", model=ModelSpec(id="m", family="f"), precision="fp32", method="catp", num_query_tokens=32,
    positions="original", parameters={}, sha256={}, precisions={"language_model": "fp32"}, bytes={"language_model": 8},
)  # fmt: skip


SCHEDULES = tuple(
    Schedule(
        flops=flops, rule="cls", merge="nearest", layers=(0, 1), kept_tokens=(2 * left, left), left=left + 1,
        share=flops, gflops=10 * flops, gflops_dense=10,
    )
    for flops, left in ((0.5, 100), (0.2, 30))
)  # fmt: skip


def sample(milliseconds: dict[str, float], tokens: list[int]) -> Timed:
    """Stages made whole."""
    steps = NEW_TOKENS - 1
    total = sum(milliseconds.values()) + (steps - 1) * milliseconds["decode"]
    whole = {
        "time_to_first_token": total - steps * milliseconds["decode"],
        "time_per_output_token": milliseconds["decode"],
        "total": total,
    }
    return Timed({**milliseconds, **whole}, [tokens])


def make(
    seed: int = 0,
    rounds: int = 50,
    noise: float = 0.02,
    slowdown: Callable[[Case, str], float] = lambda case, stage: 1.0,
    against: tuple[str, ...] = ("transformers",),
    new_tokens: list[int] | None = None,
    cpu: str = "a CPU",
    yardstick: float = 8.0,
    others_seconds: float | None = 0.0,
    bundle: Described = BUNDLE,
    contending: Described = BUNDLE,
    schedules: Mapping[str, tuple[Schedule, ...]] = {},
) -> BenchmarkReport:
    """A report whose stages take MEDIANS times a slowdown, with noise of its own for every stage and round.

    A pruned ratio halves prefill; a contender takes twice as long for everything, and answers `new_tokens`. A contender
    of any name but a runtime's is the bundle `contending`. Encoders with `schedules` prune: vision takes their shares.
    """
    rng = np.random.default_rng(seed)
    ratios = (0.0, 0.5)
    setup = Setup(
        provider="cpu", engines=None, threads=2, batches=(1,), ratios=ratios, against=against, prompt_tokens=16,
        new_tokens=NEW_TOKENS, image_size=(640, 480), seed=0, warmup=5,
        schedules=dict(schedules),
    )  # fmt: skip
    cases = [case for name in (OURS, *against) for case in setup.cases(name)]
    tokens = list(range(NEW_TOKENS))
    measured = Measured({case: [] for case in cases}, seconds=60.0, others_seconds=others_seconds)
    for _ in range(rounds):
        measured.yardstick_ms.append(yardstick * float(np.exp(noise * rng.normal())))
        for case in cases:
            factors = {
                stage: (2.0 if case.subject != OURS else 1.0)
                * (0.5 if stage == "prefill" and case.ratio else 1.0)
                * ((case.encoder_flops or 1.0) if stage == "vision" else 1.0)
                * slowdown(case, stage)
                * float(np.exp(noise * rng.normal()))
                for stage in MEDIANS
            }
            ids = (new_tokens or tokens) if case.subject != OURS else tokens
            measured.samples[case].append(
                sample({stage: value * factors[stage] for stage, value in MEDIANS.items()}, ids)
            )
    stage = StageCost(flops=10**10, bytes=10**8)
    costs = [
        Cost(
            batch=1, ratio=ratio, encoder_flops=flops, num_kept=32 if ratio == 0 else 16,
            cache_bytes=100 if ratio == 0 else 75, vote_comparisons=0,
            stages=dict.fromkeys(("vision", "qformer", "prefill", "decode"), stage),
        )
        for flops in (None, *(schedule.flops for schedule in SCHEDULES))
        for ratio in ratios
    ]  # fmt: skip
    described = {OURS: bundle, **dict.fromkeys(filter(prunes, against), contending)}
    described |= {name: described[name].model_copy(update={"encoder": "cls, schedule"}) for name in schedules}
    return make_report(
        described,
        setup,
        MACHINE.model_copy(update={"cpu": cpu}),
        (0.0, 0.0),
        (RATES, RATES),
        dict.fromkeys((OURS, *filter(prunes, against)), costs),
        [],
        measured,
    )
