"""From which language model, prompt and batch on pruning pays: what the vote costs against the prefill that it saves.

The vote is measured, and so is the rate at which this bundle's own prefill ran. How prefill grows with the model, the
prompt and the batch is arithmetic: the cost model's roofline at that rate. A prefill that waits for its weights costs
the same with fewer tokens, so there may be no size from which on pruning pays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
from pydantic import Field

from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import language_weight_bytes, matrix_weights, prefill_cost
from catp.calibration.benchmark.costs.geometry import LanguageGeometry
from catp.calibration.benchmark.timing.intervals import MedianDifference
from catp.runtime.bundle.manifest import GraphSpec
from catp.runtime.bundle.strict import Strict

LARGEST_MODEL = 10**12
LARGEST_BATCH = 1024
LARGEST_PROMPT = 2048
"""Nothing larger is looked at: matrix weights of a language model, images at a time, and tokens of a prompt."""

Verdict = Literal["yes", "no", "unclear"]


class Thresholds(Strict):
    """The smallest of each, all else as it was timed, at which prefill saves more than the vote costs; None: none."""

    layers: int | None = Field(description="of the language model, its width in proportion")
    matrix_weights: int | None = Field(description="that such a language model has, its head included")
    prompt_tokens: int | None
    batch: int | None


class Payoff(Strict):
    """One batch size at one ratio."""

    batch: int
    ratio: float
    num_kept: int
    vote_ms: MedianDifference = Field(
        description="Q-Former graph with its vote less the same graph without one, which projects all query tokens"
    )
    vote_of_total: float = Field(description="median vote over the median total at this ratio")
    saved_ms: MedianDifference = Field(
        description="prefill of all query tokens less prefill at this ratio, as measured"
    )
    modelled_ms: float = Field(description="the same by the cost model, at the bundle's own rate")
    pays: Verdict = Field(description="whether saved_ms exceeds vote_ms here; unclear where their intervals overlap")
    at_own_rate: Thresholds | None = Field(description="None where the interval of vote_ms reaches down to 0")
    at_limit: Thresholds | None = Field(description="where arithmetic runs as fast as the machine was seen to do any")


class BreakEven(Strict):
    """The cost of the vote on this machine, and what it takes to earn that back."""

    rounds: int = Field(description="in which the Q-Former graphs were timed")
    own_gflops: float = Field(
        description="matrix products per second of this bundle's fastest prefill, of an encoder-decoder model its "
        "encoder's; 1e9/s"
    )
    limit_gflops: float = Field(description="the most this machine was seen to do, in this or any product")
    gbytes: float = Field(description="memory traffic that the machine was seen to do; 1e9 bytes/s")
    largest_prompt: int = Field(
        description=f"tokens that the model has positions for, or {LARGEST_PROMPT} where it has no table of them"
    )
    payoffs: tuple[Payoff, ...]
    assumptions: str = (
        "other language models have this one's proportions, vocabulary and precision (layers and width grow by the "
        "same factor); vision encoder, Q-Former and vote are as timed; the vote of a batch that was not timed is "
        "proportional to the nearest that was; only prefill counts as saved, not the shorter cache that decode reads"
    )


@dataclass(frozen=True)
class Speed:
    """The speed of a prefill."""

    flops_per_second: float
    bytes_per_second: float

    def __post_init__(self) -> None:
        if not (self.flops_per_second > 0 and self.bytes_per_second > 0):
            raise ValueError(f"{self}: rates are positive")


class Grows(Protocol):
    """The prefill of a language model and of larger and smaller ones like it."""

    @property
    def language(self) -> Any:
        """The sizes of the bundle's own."""

    def saved_ms(self, language: Any, queries: int, workload: Workload, speed: Speed) -> float:
        """The time that `workload` takes less than the same with all `queries` kept, milliseconds; never below 0."""

    def scaled(self, layers: int) -> Any:
        """The sizes of one with so many layers, as wide in proportion."""

    def matrix_weights(self, language: Any) -> int:
        """Weights of all matrices that a token is multiplied with, the head included."""


@dataclass(frozen=True)
class PrefillModel:
    """The first pass of a language model and of larger and smaller ones like it.

    Args:
        language: the bundle's own.
        graph: its graph: how its weights and its cache are stored.
    """

    language: LanguageGeometry
    graph: GraphSpec

    def saved_ms(self, language: LanguageGeometry, queries: int, workload: Workload, speed: Speed) -> float:
        """The time that `workload` takes less than the same with all `queries` kept, milliseconds; never below 0."""
        full = replace(workload, num_kept=queries)
        return self._milliseconds(language, full, speed) - self._milliseconds(language, workload, speed)

    def scaled(self, layers: int) -> LanguageGeometry:
        return scaled(self.language, layers)

    def matrix_weights(self, language: LanguageGeometry) -> int:
        return matrix_weights(language)

    def _milliseconds(self, language: LanguageGeometry, workload: Workload, speed: Speed) -> float:
        # Scales, biases and normalisation grow with the matrices that they belong to.
        bytes_per_weight = language_weight_bytes(self.language, self.graph) / matrix_weights(self.language)
        weights = round(bytes_per_weight * matrix_weights(language))
        cost = prefill_cost(language, self.graph, weights, workload)
        return cost.fastest_ms(speed.flops_per_second, speed.bytes_per_second)


def scaled(language: LanguageGeometry, layers: int) -> LanguageGeometry:
    """A language model of so many layers, as wide in proportion; head width and vocabulary stay."""

    def grown(size: int) -> int:
        return max(1, round(size * layers / language.layers))

    return replace(
        language,
        layers=layers,
        width=grown(language.width),
        feed_forward=grown(language.feed_forward),
        heads=grown(language.heads),
        key_value_heads=grown(language.key_value_heads),
    )


def vote_at(batch: int, votes_ms: Mapping[int, float]) -> float:
    """Milliseconds of the vote of a batch, from those of the batches that were timed.

    Per image between two of them it is in between; beyond them it is that of the nearest.
    """
    timed = sorted(votes_ms)
    return batch * float(np.interp(batch, timed, [votes_ms[size] / size for size in timed]))


def thresholds(
    model: Grows,
    queries: int,
    workload: Workload,
    votes_ms: Mapping[int, float],
    largest_prompt: int,
    speed: Speed,
) -> Thresholds:
    """Vary language model, prompt and batch, one at a time.

    Args:
        queries: query tokens before pruning.
        workload: what was timed, pruned.
        votes_ms: by batch, at this ratio; that of the workload among them.
    """
    own = model.language

    def pays(language: Any, changed: Workload) -> bool:
        return model.saved_ms(language, queries, changed, speed) > vote_at(changed.batch, votes_ms)

    layers = _first(_layers(model), lambda layers: pays(model.scaled(layers), workload))
    prompts, batches = range(1, largest_prompt + 1), range(1, LARGEST_BATCH + 1)
    return Thresholds(
        layers=layers,
        matrix_weights=None if layers is None else model.matrix_weights(model.scaled(layers)),
        prompt_tokens=_first(prompts, lambda tokens: pays(own, replace(workload, prompt_tokens=tokens))),
        batch=_first(batches, lambda batch: pays(own, replace(workload, batch=batch))),
    )


def verdict(vote: MedianDifference, saved: MedianDifference) -> Verdict:
    """Whether more is saved than spent, as sure as both intervals are."""
    if saved.bounds[0] > vote.bounds[1]:
        return "yes"
    return "no" if saved.bounds[1] < vote.bounds[0] else "unclear"


def _layers(model: Grows) -> Iterable[int]:
    layers = 1
    while model.matrix_weights(model.scaled(layers)) <= LARGEST_MODEL:
        yield layers
        layers += 1


def _first(values: Iterable[int], holds: Callable[[int], bool]) -> int | None:
    return next((value for value in values if holds(value)), None)
