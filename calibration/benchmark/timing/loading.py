"""Getting everything ready that is to be timed, one after the other, so that their memory can be told apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from catp.calibration.benchmark.contenders.subject import OURS, Subject, TimedInput
from catp.calibration.benchmark.machine import peak_memory, resident_memory
from catp.calibration.benchmark.timing.conditions import Load, Setup
from catp.calibration.benchmark.timing.rounds import warm_up
from catp.runtime.providers.cuda import device_memory
from catp.runtime.system.progress import Progress, silent


def load_subjects(
    open_subject: Callable[[str], Subject],
    setup: Setup,
    timed_input: TimedInput,
    verified: Mapping[str, float],
    step: Progress = silent,
) -> tuple[dict[str, Subject], list[Load]]:
    """Load and warm up ours, then each contender.

    Args:
        open_subject: loads the one of that name.
        verified: seconds that comparing a bundle's files with its manifest took, by the name of its subject.
        step: progress display.

    Raises:
        CatpError: one can't be loaded.
    """
    subjects: dict[str, Subject] = {}
    loads = []
    for name in (OURS, *setup.against):
        before, device_before = resident_memory(), _device_memory(setup.provider)
        clock = [time.perf_counter()]
        with step(f"load {name}"):
            subjects[name] = open_subject(name)
        clock.append(time.perf_counter())
        with step(f"warm up {name}"):
            warm_up(subjects[name], timed_input, setup.cases(name), setup.warmup)
        clock.append(time.perf_counter())
        after, device_after = resident_memory(), _device_memory(setup.provider)
        loads.append(
            Load(
                subject=name,
                verify_seconds=verified.get(name),
                load_seconds=clock[1] - clock[0],
                warmup_seconds=clock[2] - clock[1],
                resident_bytes=_gained(before, after),
                device_bytes=_gained(device_before, device_after),
                peak_bytes=peak_memory(),
            )
        )
    return subjects, loads


def _device_memory(provider: str) -> int | None:
    return None if provider == "cpu" else device_memory()


def _gained(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before
