"""A slowdown is found, and none is found where there is none."""

from pathlib import Path

import pytest
from benchmark_reports import BUNDLE, make

from catp.calibration.benchmark.contenders.subject import OURS, Case
from catp.calibration.benchmark.results.compare import compare
from catp.calibration.benchmark.results.report import BenchmarkReport, read_report
from catp.calibration.benchmark.timing.summary import summarize
from catp.runtime.errors import UsageError


def slow(stage: str, factor: float, ratio: float | None = None) -> BenchmarkReport:
    return make(
        seed=1,
        slowdown=lambda case, name: factor if name == stage and ratio in (None, case.ratio) else 1.0,
    )


def test_a_report_compared_with_itself_is_clean() -> None:
    found = compare(make(), make(), 0.05)
    assert not found.slower and not found.notes
    assert {change.change.median for change in found.changes} == {1.0}


@pytest.mark.parametrize("seed", range(1, 9))
def test_an_unchanged_pair_is_clean(seed: int) -> None:
    """Also with noise of 8 % in every stage, and a threshold of nearly nothing is not what that is about."""
    assert not compare(make(), make(seed=seed), 0.05).slower
    assert not compare(make(noise=0.08), make(seed=seed, noise=0.08), 0.05).slower


@pytest.mark.parametrize("stage", ["vision", "qformer", "prefill", "decode"])
def test_ten_percent_are_found_where_they_are(stage: str) -> None:
    found = compare(make(), slow(stage, 1.1), 0.05)
    assert found.slower
    slower = {change.stage for change in found.changes if change.slower and change.counts}
    assert slower - {"time_to_first_token", "time_per_output_token", "total"} == {stage}
    change = next(c for c in found.changes if (c.stage, c.subject) == (stage, OURS))
    assert change.change.median == pytest.approx(1.1, rel=0.02) and change.change.is_clear


def test_one_setting_is_enough() -> None:
    found = compare(make(), slow("prefill", 1.1, ratio=0.5), 0.05)
    assert {change.ratio for change in found.changes if change.slower} == {0.5}


def test_a_slowdown_everywhere_is_found_in_the_total() -> None:
    found = compare(make(noise=0.05), make(seed=1, noise=0.05, slowdown=lambda case, stage: 1.1), 0.05)
    total = next(c for c in found.changes if (c.stage, c.subject, c.ratio) == ("total", OURS, 0.0))
    assert total.slower and total.change.median == pytest.approx(1.1, rel=0.02)


def test_below_the_threshold_nothing_fails() -> None:
    assert not compare(make(), slow("vision", 1.03), 0.05).slower
    assert compare(make(), slow("vision", 1.03), 0.01).slower


def test_faster_is_no_failure() -> None:
    found = compare(make(), slow("vision", 0.8), 0.05)
    assert not found.slower
    assert {change.stage for change in found.changes if change.faster} >= {"vision", "total"}


def test_what_takes_no_time_and_contenders_decide_nothing() -> None:
    found = compare(make(), slow("host", 2), 0.05)
    assert any(change.slower for change in found.changes) and not found.slower
    contender = make(seed=1, slowdown=lambda case, stage: 1.0 if case.subject == OURS else 1.5)
    assert not compare(make(), contender, 0.05).slower


def test_a_slower_machine_is_named() -> None:
    found = compare(make(), make(seed=1, yardstick=9.0, cpu="another"), 0.05)
    assert found.notes[0] == "CPU: a CPU before, another now"
    assert "the machine itself was slower: the yardstick" in found.notes[1]


def test_what_was_not_measured_twice_is_counted() -> None:
    found = compare(make(), make(seed=1, against=()), 0.05)
    assert found.notes == ("1 of 3 settings are in one report only, and are not compared",)
    assert Case(1, "transformers", 0.0) not in {Case(c.batch, c.subject, c.ratio) for c in found.changes}


def test_bundles_among_the_contenders_are_compared_ratio_by_ratio() -> None:
    changed = BUNDLE.model_copy(update={"precisions": {"language_model": "int8 (fp32), for cpu"}})
    slower = make(
        seed=1, against=("other",), contending=changed, slowdown=lambda c, _: 1.0 if c.subject == OURS else 1.5
    )
    found = compare(make(against=("other",)), slower, 0.05)
    assert {c.ratio for c in found.changes if c.subject == "other" and c.slower} == {0.0, 0.5}
    assert not found.slower  # it is ours that decides
    assert found.notes == ("precision of other: fp32 before, int8 (fp32), for cpu now",)


def test_other_work_is_refused() -> None:
    other = make()
    other = other.model_copy(update={"setup": other.setup.model_copy(update={"new_tokens": 20})})
    with pytest.raises(UsageError, match="differ in new_tokens: 10 and 20"):
        compare(make(), other, 0.05)
    with pytest.raises(UsageError, match="5 and 50 rounds"):
        compare(make(rounds=5), make(), 0.05)
    with pytest.raises(UsageError, match="no setting in common"):
        compare(make(), make().model_copy(update={"results": ()}), 0.05)


def part_of(report: BenchmarkReport, start: int, factor: float = 1.0) -> BenchmarkReport:
    """Every second round of a run from `start` on, ours taking `factor` times as long for everything."""
    results = []
    for result in report.results:
        times = factor if result.subject == OURS else 1.0
        samples = {stage: [times * value for value in found[start::2]] for stage, found in result.samples_ms.items()}
        summaries = {stage: summarize(values) for stage, values in samples.items()}
        results.append(result.model_copy(update={"samples_ms": samples, "milliseconds": summaries}))
    yardstick = report.yardstick_ms[start::2]
    update = {"results": tuple(results), "yardstick_ms": yardstick, "rounds": len(yardstick)}
    return report.model_copy(update=update)


def test_ten_percent_are_found_in_samples_of_a_real_run_and_nothing_where_nothing_changed() -> None:
    recorded = read_report(Path(__file__).parents[3] / "benchmarks" / "records" / "mid-size.json")
    before, after = part_of(recorded, 0), part_of(recorded, 1)
    assert not compare(before, after, 0.05).slower and not compare(after, before, 0.05).slower
    found = compare(before, part_of(recorded, 1, 1.1), 0.05)
    slower = {(change.ratio, change.stage) for change in found.changes if change.slower and change.counts}
    assert {(0.0, "total"), (0.5, "total"), (0.0, "vision"), (0.0, "qformer"), (0.5, "qformer")} <= slower
