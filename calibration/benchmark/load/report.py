"""The report of a load: settings, what was measured in each, and how they compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from catp.calibration.benchmark.load.client import Sample
from catp.calibration.benchmark.load.workload import Pictures, Workload
from catp.calibration.benchmark.machine import Machine
from catp.calibration.benchmark.timing.intervals import Ratio, paired_ratio
from catp.runtime.errors import UsageError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Setting(_Strict):
    """One load on one server."""

    server: str
    pictures: Pictures
    clients: int | None = Field(
        default=None, description="that wait for their answers; None: requests arrive at a rate"
    )
    rate: float | None = Field(default=None, description="arrivals a second; None: clients wait for their answers")

    @property
    def load(self) -> str:
        return f"{self.clients}" if self.clients is not None else f"{self.rate:g}/s"

    @property
    def key(self) -> tuple[object, ...]:
        """The load alone, which is what settings of two servers are compared by."""
        return self.pictures, self.clients, self.rate


class Quantiles(_Strict):
    """Quantiles of milliseconds, over all requests of all rounds."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Quantiles | None:
        if not values:
            return None
        p50, p95, p99 = np.quantile(values, [0.5, 0.95, 0.99])
        return cls(p50=float(p50), p95=float(p95), p99=float(p99))


class Measured(_Strict):
    """Everything about one setting."""

    setting: Setting
    requests: int
    failures: dict[str, int] = Field(description="by status and code; they are in none of the times")
    tokens: int = Field(description="generated, of all requests that did not fail")
    tokens_per_second: tuple[float, ...] = Field(description="by round, from its first request to its last answer")
    requests_per_second: tuple[float, ...] = Field(description="by round, those that did not fail")
    first_ms: Quantiles | None = Field(description="from sending a request to its first text")
    gap_ms: Quantiles | None = Field(description="between two pieces of text of one answer")
    total_ms: Quantiles | None = Field(description="from sending a request to the end of its answer")
    piece_tokens: float | None = Field(description="tokens for each piece of text, mean")

    @property
    def throughput(self) -> float:
        """Tokens a second, median of the rounds."""
        return float(np.median(self.tokens_per_second))

    @property
    def answers(self) -> float:
        """Answers a second, median of the rounds."""
        return float(np.median(self.requests_per_second))


class Comparison(_Strict):
    """Tokens a second of one setting in terms of another one's, paired by round."""

    of: Setting
    to: Setting
    ratio: Ratio
    why: Literal["clients", "server"] = Field(description="one client of the same server, or the first server")


class Server(_Strict):
    """A server that was measured."""

    name: str
    model: str
    bundle: str | None = Field(default=None, description="folder of the bundle, of one that was started")
    options: str | None = Field(default=None, description="of catp-serve, of one that was started")


class LoadReport(_Strict):
    """A load on one or more servers, in the same rounds."""

    schema_version: Literal[1] = 1
    created: str
    servers: tuple[Server, ...]
    prompt: str
    max_tokens: int
    image_size: int
    fields: dict[str, Any] = Field(description="of every body, beside those of OpenAI's chat completions used here")
    requests: int = Field(description="of each client in a round; arrivals in a round are as many as 8 clients send")
    rounds: int
    seed: int
    machine: Machine
    load_average_before: float | None
    seconds: float
    results: tuple[Measured, ...]
    comparisons: tuple[Comparison, ...]


def measured(setting: Setting, rounds: Sequence[Sequence[Sample]]) -> Measured:
    """The summary of a setting's samples, by round."""
    samples = [sample for of_round in rounds for sample in of_round]
    answered = [sample for sample in samples if sample.failure is None]
    pieces = sum(len(sample.pieces) for sample in answered)
    tokens = sum(sample.tokens for sample in answered)
    failures = Counter(sample.failure for sample in samples if sample.failure is not None)
    return Measured(
        setting=setting,
        requests=len(samples),
        failures=dict(sorted(failures.items())),
        tokens=tokens,
        tokens_per_second=tuple(_rate(of, sum(s.tokens for s in of if s.failure is None)) for of in rounds),
        requests_per_second=tuple(_rate(of, sum(s.failure is None for s in of)) for of in rounds),
        first_ms=Quantiles.of([sample.first_ms for sample in answered if sample.first_ms is not None]),
        gap_ms=Quantiles.of([gap for sample in answered for gap in sample.gaps_ms]),
        total_ms=Quantiles.of([sample.total_ms for sample in answered]),
        piece_tokens=tokens / pieces if pieces else None,
    )


def _rate(samples: Sequence[Sample], amount: int) -> float:
    seconds = max(sample.ended for sample in samples) - min(sample.began for sample in samples)
    return amount / seconds


def compare_settings(results: Sequence[Measured], seed: int) -> tuple[Comparison, ...]:
    """Each setting against one client of the same server, and against the first server under the same load."""
    found = []
    alone = {(one.setting.server, one.setting.pictures): one for one in results if one.setting.clients == 1}
    first: dict[tuple[object, ...], Measured] = {}
    for one in results:
        others: list[tuple[Literal["clients", "server"], Measured | None]] = [
            ("clients", alone.get((one.setting.server, one.setting.pictures)) if one.setting.clients else None),
            ("server", first.setdefault(one.setting.key, one)),
        ]
        for why, other in others:
            if other is not None and other is not one and min(other.tokens_per_second) > 0:
                ratio = paired_ratio(one.tokens_per_second, other.tokens_per_second, seed)
                found.append(Comparison(of=one.setting, to=other.setting, ratio=ratio, why=why))
    return tuple(found)


def make_report(
    servers: Sequence[Server],
    workload: Workload,
    requests: int,
    rounds: int,
    machine: Machine,
    load_before: float | None,
    seconds: float,
    samples: Mapping[Setting, Sequence[Sequence[Sample]]],
) -> LoadReport:
    results = tuple(measured(setting, of_rounds) for setting, of_rounds in samples.items())
    return LoadReport(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        servers=tuple(servers),
        prompt=workload.prompt,
        max_tokens=workload.max_tokens,
        image_size=workload.image_size,
        fields=dict(workload.fields),
        requests=requests,
        rounds=rounds,
        seed=workload.seed,
        machine=machine,
        load_average_before=load_before,
        seconds=seconds,
        results=results,
        comparisons=compare_settings(results, workload.seed),
    )


def read_report(path: Path) -> LoadReport:
    """Raises UsageError where it is none."""
    try:
        return LoadReport.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise UsageError(f"{path}: no report of catp-bench serve ({type(error).__name__})") from None
