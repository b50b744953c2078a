"""Conditions of a measurement: what was asked, how it was timed, and what it took to get ready."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from catp.calibration.benchmark.contenders.subject import Case, prunes
from catp.calibration.benchmark.schedules import Schedule
from catp.runtime.bundle.strict import Strict


class Setup(Strict):
    """The workload, and how it was timed."""

    provider: str
    engines: str | None
    threads: int
    batches: tuple[int, ...]
    ratios: tuple[float, ...]
    against: tuple[str, ...] = Field(description="contenders: runtimes, and bundles by the names of their folders")
    prompt_tokens: int = Field(description="or tokens of each text that is scored, those that frame it included")
    new_tokens: int = Field(description="generated exactly; an end token ends nothing; 0 where texts are scored")
    texts: int | None = Field(
        default=None, description="that each picture, or pair of pictures, is compared with; None where text is written"
    )
    pictures: int = Field(default=1, description="of one request; a batch is so many requests")
    image_size: tuple[int, int] = Field(description="width and height of the pictures, in memory when timing begins")
    seed: int
    warmup: int = Field(description="untimed runs of each setting")
    schedules: dict[str, tuple[Schedule, ...]] = Field(
        default={}, description="of bundles whose vision encoder prunes, by name: each is timed at every ratio"
    )
    load_excluded: Literal[True] = True
    warmup_excluded: Literal[True] = True
    clock: str = "host clock, the device synchronised after each stage; vision and Q-Former on TensorRT by CUDA events"
    order: str = "every setting once per round, in an order drawn anew for each round"

    def cases(self, subject: str) -> list[Case]:
        """The settings in which it is timed."""
        ratios = self.ratios if prunes(subject) else (0.0,)
        shares = [schedule.flops for schedule in self.schedules.get(subject, ())] or [None]
        return [Case(size, subject, ratio, share) for size in self.batches for share in shares for ratio in ratios]

    def schedule(self, case: Case) -> Schedule | None:
        """Schedule of the vision encoder in a setting; None where it is dense, or counts by itself."""
        schedules = self.schedules.get(case.subject, ())
        return next((schedule for schedule in schedules if schedule.flops == case.encoder_flops), None)


class Load(Strict):
    """The cost of getting a subject ready."""

    subject: str
    verify_seconds: float | None = Field(description="comparing every file of the bundle with its sha256")
    load_seconds: float
    warmup_seconds: float
    resident_bytes: int | None = Field(description="host memory that the process gained by load and warm-up")
    device_bytes: int | None = Field(default=None, description="device memory gained by it; None on a CPU")
    peak_bytes: int = Field(description="highest host memory of the process so far; subjects are loaded in this order")
