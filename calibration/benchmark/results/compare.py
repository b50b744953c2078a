"""Two reports: which stages got slower, and how sure that is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from catp.calibration.benchmark.contenders.described import Described
from catp.calibration.benchmark.contenders.subject import OURS, STAGES, WHOLE, Case
from catp.calibration.benchmark.results.report import BenchmarkReport, Result
from catp.calibration.benchmark.timing.intervals import FEWEST, Ratio, ratio_of_medians
from catp.runtime.errors import UsageError

NEGLIGIBLE = 0.01
"""A stage that takes less of the total than this (all decode steps together) decides nothing."""


class Change(BaseModel):
    """One stage of one setting, new over old."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: str
    batch: int
    ratio: float
    encoder_flops: float | None = Field(default=None, description="share of the dense encoder's work, if asked for")
    stage: str
    old_ms: float
    new_ms: float
    change: Ratio = Field(description="new median over old median")
    counts: bool = Field(description="whether it may fail the comparison: ours, and a stage that matters")
    slower: bool = Field(description="beyond the threshold, the whole interval")
    faster: bool

    @property
    def case(self) -> Case:
        return Case(self.batch, self.subject, self.ratio, self.encoder_flops)


class Comparison(BaseModel):
    """The whole of `catp-bench compare --json`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = 1
    threshold: float
    changes: tuple[Change, ...]
    slower: bool
    notes: tuple[str, ...]


def compare(old: BenchmarkReport, new: BenchmarkReport, threshold: float) -> Comparison:
    """Change of every stage's median in the settings that both reports have.

    Raises:
        UsageError: the reports have no setting in common, or were not asked the same.
    """
    for name in ("prompt_tokens", "new_tokens", "texts", "image_size"):
        was, is_ = getattr(old.setup, name), getattr(new.setup, name)
        if was != is_:
            raise UsageError(f"reports differ in {name}: {was} and {is_}; compare runs of the same work")
    known = {result.case: result for result in old.results}
    pairs = [(known[result.case], result) for result in new.results if result.case in known]
    if not pairs:
        raise UsageError("reports have no setting in common; compare runs with the same --batch and --ratios")
    if min(old.rounds, new.rounds) < FEWEST:
        raise UsageError(
            f"reports of {old.rounds} and {new.rounds} rounds: with fewer than {FEWEST} nothing can be said with "
            "95 % confidence; measure with more --iterations"
        )
    changes = tuple(change for pair in pairs for change in _changes(*pair, threshold, new.setup.seed))
    return Comparison(
        threshold=threshold,
        changes=changes,
        slower=any(change.slower and change.counts for change in changes),
        notes=tuple(_notes(old, new, len(pairs))),
    )


def _changes(old: Result, new: Result, threshold: float, seed: int) -> list[Change]:
    found = []
    for stage in (*STAGES, *WHOLE):
        before, after = old.samples_ms.get(stage), new.samples_ms.get(stage)
        if not before or not after or old.milliseconds[stage].p50 <= 0:
            continue
        ratio = ratio_of_medians(after, before, seed)
        low, high = ratio.interval_95 or (0.0, float("inf"))
        found.append(
            Change(
                subject=new.subject,
                batch=new.batch,
                ratio=new.ratio,
                encoder_flops=new.encoder_flops,
                stage=stage,
                old_ms=old.milliseconds[stage].p50,
                new_ms=new.milliseconds[stage].p50,
                change=ratio,
                counts=new.subject == OURS and max(_share(old, stage), _share(new, stage)) >= NEGLIGIBLE,
                slower=low > 1 + threshold,
                faster=high < 1 / (1 + threshold),
            )
        )
    return found


def _share(result: Result, stage: str) -> float:
    """The share of the total."""
    times = len(result.token_ids[0]) - 1 if stage in ("decode", "time_per_output_token") else 1
    return times * result.milliseconds[stage].p50 / result.milliseconds["total"].p50


def _precisions(old: Described, new: Described) -> tuple[str, str]:
    """By graph, where both reports say it."""
    if old.precisions and new.precisions:
        return old.precision_label, new.precision_label
    return old.precision, new.precision


def _notes(old: BenchmarkReport, new: BenchmarkReport, common: int) -> list[str]:
    found = []
    settings = len({result.case for result in (*old.results, *new.results)})
    if common < settings:
        found.append(f"{settings - common} of {settings} settings are in one report only, and are not compared")
    pairs = {
        "CPU": (old.machine.cpu, new.machine.cpu),
        "threads": (old.setup.threads, new.setup.threads),
        "provider": (old.setup.provider, new.setup.provider),
        "clock governor": (old.machine.governor, new.machine.governor),
        "model": (old.bundle.model.id, new.bundle.model.id),
        "voting method": (old.bundle.method, new.bundle.method),
    }
    before, after = {OURS: old.bundle, **old.bundles}, {OURS: new.bundle, **new.bundles}
    pairs |= {f"precision of {name}": _precisions(before[name], after[name]) for name in before if name in after}
    found += [f"{name}: {was} before, {is_} now" for name, (was, is_) in pairs.items() if was != is_]
    yardstick = ratio_of_medians(new.yardstick_ms, old.yardstick_ms, new.setup.seed)
    if yardstick.is_clear and abs(yardstick.median - 1) > 0.03:
        found.append(
            f"the machine itself was {'slower' if yardstick.median > 1 else 'faster'}: the yardstick, the same work in "
            f"every run, took {100 * (yardstick.median - 1):+.0f} %; measure both again, close together"
        )
    found += [f"{name} run was noisy" for name, report in (("the old", old), ("the new", new)) if report.noisy]
    return found
