"""The findings of catp-calibrate fastest, as JSON."""

from __future__ import annotations

from pydantic import Field

from catp.calibration.benchmark.contenders.described import Described
from catp.calibration.benchmark.machine import Machine
from catp.calibration.benchmark.timing.intervals import Ratio
from catp.calibration.data.metrics import Metric
from catp.calibration.fastest.triples import Triple
from catp.runtime.bundle.strict import Strict


class Candidate(Strict):
    """One triple: what it costs in accuracy on the searching half, and how long an answer takes."""

    triple: Triple
    tokens_kept: float | None = Field(description="query tokens after the vote, mean over pictures; none: no vote")
    encoder_share: float = Field(description="of the dense encoder's work")
    accuracy: float = Field(description="mean over questions, 0 to 1")
    difference: float = Field(description="to the unpruned first bundle, paired by question; negative: a loss")
    interval_95: tuple[float, float] = Field(description="of the difference")
    low: float = Field(description="its lower end, with losses that few pictures did not show")
    within: bool = Field(description="whether it loses no more than the budget, at that end")
    milliseconds: tuple[float, ...] = Field(default=(), description="of an answer, by round; none: not timed")
    median_ms: float | None = None
    speedup: Ratio | None = Field(default=None, description="the first one's time over this one's, paired by round")
    behind: Ratio | None = Field(
        default=None, description="this one's time over that of the fastest within the budget, paired by round"
    )
    on_front: bool = Field(default=False, description="no other that was timed is as fast and as accurate, or better")


class Attempt(Strict):
    """A candidate on the other half of the pictures."""

    candidate: int = Field(description="place in the list of candidates")
    fastest: int = Field(description="of those that were left")
    tied: tuple[int, ...] = Field(description="those not clearly slower than it; of them the one that loses least")
    confidence: float = Field(description="with which the budget is held; higher for each later attempt")
    accuracy: float
    full_accuracy: float = Field(description="of the unpruned first bundle, on the same questions")
    difference: float
    interval_95: tuple[float, float] = Field(description="of the difference")
    low: float = Field(description="its lower end with that confidence, with losses that few pictures did not show")
    questions: int
    confirmed: bool


class Questions(Strict):
    """The questions of the searching half, and how they were asked."""

    data: str
    metric: Metric
    batch_size: int
    questions: int
    images: int
    skipped: int = Field(description="questions that could not be asked")


class Timing(Strict):
    """How answers were timed; all in one run, whatever was known of their accuracy before."""

    rounds: int
    warmup: int = Field(description="untimed answers of each")
    prompt_tokens: int
    new_tokens: int = Field(description="of an answer, exactly")
    image_size: tuple[int, int] = Field(description="width and height of the picture, in memory when timing begins")
    provider: str
    threads: int
    yardstick_ms: tuple[float, ...] = Field(description="the same small work in each round")
    cpu_of_others: float | None = Field(description="share of the CPUs that other processes used; none: unknown")
    notes: tuple[str, ...] = Field(description="why not to believe the times")


class FastestReport(Strict):
    """The whole of it; the first candidate is the unpruned first bundle, which the others are compared with."""

    schema_version: int = 1
    machine: Machine
    bundles: dict[str, Described] = Field(description="by the names that triples use")
    seed: int
    max_accuracy_drop: float
    asked: Questions
    candidates: tuple[Candidate, ...]
    timing: Timing | None = Field(default=None, description="none: nothing was within the budget")
    attempts: tuple[Attempt, ...] = Field(default=(), description="to confirm, in their order")
    chosen: int | None = Field(default=None, description="place in the list of candidates; none: nothing")
    reason: str = Field(default="", description="for people: why this one")

    @property
    def first(self) -> Candidate:
        """The unpruned first bundle."""
        return self.candidates[0]
