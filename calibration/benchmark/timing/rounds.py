"""Timing in rounds: every setting once per round, in an order drawn anew, so that what drifts hits all alike."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from catp.calibration.benchmark.contenders.subject import Case, Subject, Timed, TimedInput
from catp.calibration.benchmark.machine import busy_seconds_of_others

SETTLE_SECONDS = 0.02
"""Before each measurement: threads of the one before may still be spinning, waiting for work."""
MOST_ROUNDS = 500
"""However short an answer is: more would make the report large and no interval useful."""


@dataclass(frozen=True)
class Rounds:
    """How long to measure: a number of rounds, or rounds until each setting ran for `min_seconds`."""

    count: int | None = 50
    min_seconds: float | None = None

    def enough(self, done: int, seconds: Mapping[Case, float]) -> bool:
        if self.min_seconds is None:
            return done >= (self.count or 0)
        return done >= MOST_ROUNDS or (done > 0 and min(seconds.values()) >= self.min_seconds)


@dataclass
class Measured:
    """Samples of every setting, one per round."""

    samples: dict[Case, list[Timed]]
    yardstick_ms: list[float] = field(default_factory=list)
    seconds: float = 0.0  # of the rounds, pauses included
    others_seconds: float | None = None  # CPU time of other processes meanwhile

    def values(self, case: Case, stage: str) -> list[float]:
        """Milliseconds of one stage, [rounds]; empty where the setting has no such stage."""
        return [sample.milliseconds[stage] for sample in self.samples[case] if stage in sample.milliseconds]


def warm_up(subject: Subject, timed_input: TimedInput, cases: Sequence[Case], times: int) -> None:
    """Run each setting: memory is allocated, kernels are chosen, caches are filled."""
    for case in cases:
        for _ in range(times):
            subject.run(timed_input, case)


def measure(
    subjects: Mapping[str, Subject],
    timed_input: TimedInput,
    cases: Sequence[Case],
    rounds: Rounds,
    seed: int,
    advance: Callable[[int, Mapping[Case, float]], None] = lambda done, seconds: None,
) -> Measured:
    """Time every setting in rounds.

    Args:
        subjects: by name, warm.
        advance: called after each round with the rounds done, and the seconds each setting took in all.
    """
    order = random.Random(seed)
    yardstick = Yardstick()
    measured = Measured({case: [] for case in cases})
    seconds = dict.fromkeys(cases, 0.0)
    started, others = time.perf_counter(), busy_seconds_of_others()
    done = 0
    collects = gc.isenabled()
    gc.collect()
    gc.freeze()  # what is loaded stays: looking through it again in every round takes longer than many an answer
    gc.disable()  # a collection would be charged to whoever it interrupts
    try:
        while not rounds.enough(done, seconds):
            gc.collect()
            time.sleep(SETTLE_SECONDS)
            measured.yardstick_ms.append(yardstick.run())
            for case in order.sample(list(cases), len(cases)):
                time.sleep(SETTLE_SECONDS)
                sample = subjects[case.subject].run(timed_input, case)
                measured.samples[case].append(sample)
                seconds[case] += sample.milliseconds["total"] / 1e3
            done += 1
            advance(done, seconds)
    finally:
        gc.unfreeze()
        if collects:
            gc.enable()
    measured.seconds = time.perf_counter() - started
    now = busy_seconds_of_others()
    if others is not None and now is not None:
        measured.others_seconds = max(0.0, now - others)
    return measured


class Yardstick:
    """The same small piece of work in every round of every run: when it takes longer, the machine is slower.

    One thread: exponentials for the core, and reading 64 MiB for the memory. No BLAS, whose threads would go on
    spinning into the next measurement.
    """

    def __init__(self) -> None:
        self._numbers = np.linspace(0, 1, 1 << 18, dtype=np.float64)
        self._large = np.ones(1 << 24, np.float32)
        self._result = np.empty_like(self._numbers)

    def run(self) -> float:
        """Milliseconds: the least of three, which an interruption spares."""
        found = []
        for _ in range(3):
            started = time.perf_counter()
            np.exp(self._numbers, out=self._result)
            self._large.max()
            found.append(time.perf_counter() - started)
        return 1e3 * min(found)
