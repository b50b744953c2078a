"""The loop: every setting once per round, and what it reports is what was measured."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from catp.calibration.benchmark.contenders.bundle_subject import BundleSubject
from catp.calibration.benchmark.contenders.subject import (
    OURS,
    STAGES,
    WHOLE,
    Case,
    Timed,
    TimedInput,
    make_sample,
    make_timed_input,
)
from catp.calibration.benchmark.machine import busy_seconds_of_others, describe_machine, peak_memory, resident_memory
from catp.calibration.benchmark.rates import measure_rates
from catp.calibration.benchmark.timing.rounds import MOST_ROUNDS, Rounds, measure, warm_up
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.providers import open_provider

pytestmark = pytest.mark.heavy

CASES = [Case(1, "a", 0.0), Case(1, "a", 0.5), Case(1, "b", 0.0)]
NOTHING = TimedInput([], [], 1)


class Recorder:
    """Answers at once, and says that it took a known time."""

    def __init__(self, name: str, calls: list[Case]) -> None:
        self.name = name
        self._calls = calls

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        self._calls.append(case)
        return Timed({"total": 100.0 + len(self._calls)}, [[1]])


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.benchmark.timing.rounds.SETTLE_SECONDS", 0)


def record(rounds: Rounds, seed: int = 0) -> tuple[list[Case], list[tuple[int, Mapping[Case, float]]]]:
    calls: list[Case] = []
    seen: list[tuple[int, Mapping[Case, float]]] = []
    subjects = {name: Recorder(name, calls) for name in "ab"}
    measured = measure(subjects, NOTHING, CASES, rounds, seed, lambda done, s: seen.append((done, dict(s))))
    assert len(measured.yardstick_ms) == len(seen) and min(measured.yardstick_ms) > 0
    assert measured.seconds > 0 and (measured.others_seconds is None or measured.others_seconds >= 0)
    # Pairs: the i-th sample of every setting is of round i.
    for number in range(len(seen)):
        totals = {measured.values(case, "total")[number] for case in CASES}
        assert totals == {101.0 + i for i in range(3 * number, 3 * number + 3)}
    assert measured.values(CASES[0], "decode") == []
    return calls, seen


def test_every_round_times_everything_once_in_another_order() -> None:
    calls, seen = record(Rounds(count=12))
    groups = [tuple(calls[i : i + 3]) for i in range(0, len(calls), 3)]
    assert all(sorted(group, key=str) == sorted(CASES, key=str) for group in groups) and len(set(groups)) > 1
    assert [done for done, _ in seen] == list(range(1, 13))
    assert record(Rounds(count=12))[0] == calls != record(Rounds(count=12), seed=1)[0]


def test_a_time_is_reached_by_every_setting() -> None:
    _, seen = record(Rounds(count=None, min_seconds=0.35))
    assert len(seen) == 4 and min(seen[-1][1].values()) >= 0.35 > min(seen[-2][1].values())
    assert Rounds(count=None, min_seconds=1e9).enough(MOST_ROUNDS, dict.fromkeys(CASES, 1.0))


def test_warm_up_runs_every_setting() -> None:
    calls: list[Case] = []
    warm_up(Recorder("a", calls), NOTHING, CASES[:2], 3)
    assert calls == [CASES[0]] * 3 + [CASES[1]] * 3


def test_stages_add_up_to_the_total() -> None:
    found = make_sample([1.0, 1.1, 1.3, 1.6, 3.0], prefill=0.4, decode=[0.2, 0.3, 0.4], token_ids=[[1] * 4])
    assert found.milliseconds == pytest.approx(
        {
            "preprocess": 100, "vision": 200, "qformer": 300, "prefill": 400, "decode": 300, "host": 100,
            "time_to_first_token": 1100, "time_per_output_token": 300, "total": 2000,
        }
    )  # fmt: skip
    told = make_sample([1.0, 1.1, 1.3, 1.6, 3.0], 0.4, [0.2, 0.3, 0.4], [[1] * 4], first_token=0.45).milliseconds
    assert told["time_to_first_token"] == pytest.approx(1050) and told["time_per_output_token"] == pytest.approx(
        950 / 3
    )
    assert {name for name in told if told[name] != found.milliseconds[name]} == {
        "time_to_first_token", "time_per_output_token",
    }  # fmt: skip
    single = make_sample([0.0, 0.1, 0.2, 0.3, 0.4], prefill=0.1, decode=[], token_ids=[[1]])
    assert "decode" not in single.milliseconds and single.milliseconds["time_to_first_token"] == pytest.approx(400)


def test_a_bundle_generates_exactly_what_is_asked(demo_bundle: Path) -> None:
    bundle = open_bundle(demo_bundle)
    timed_input = make_timed_input(bundle.manifest, 384, batch=2, prompt_tokens=16, new_tokens=12, seed=0)
    subject = BundleSubject(bundle, open_provider("cpu", 1))
    for ratio in (0.0, 0.75):
        found = subject.run(timed_input, Case(2, OURS, ratio))
        assert [len(row) for row in found.token_ids] == [12, 12]
        scored = {"image", "text", "match"}
        assert tuple(found.milliseconds) == tuple(stage for stage in (*STAGES, *WHOLE) if stage not in scored)
        whole = found.milliseconds
        steps = 11 * whole["time_per_output_token"]
        assert whole["total"] == pytest.approx(whole["time_to_first_token"] + steps)
        # What the loop does between steps comes after the first token.
        assert whole["time_to_first_token"] < whole["total"] - 11 * whole["decode"]
    # An end token would have ended the demo's answers: it generates one within 12 tokens of any prompt.
    eos = bundle.manifest.text.eos_token_ids
    assert any(token in eos for row in found.token_ids for token in row[:-1])


def test_questions_are_made_of_the_seed(demo_bundle: Path) -> None:
    manifest = open_bundle(demo_bundle).manifest
    one, same, other = (make_timed_input(manifest, 384, 2, 16, 10, seed) for seed in (0, 0, 1))
    assert one.prompt_ids == same.prompt_ids != other.prompt_ids
    assert [image.tobytes() for image in one.images] == [image.tobytes() for image in same.images]
    assert one.images[0].tobytes() != one.images[1].tobytes()
    assert not {manifest.text.pad_token_id, *manifest.text.eos_token_ids, 383} & set(one.prompt_ids)
    with pytest.raises(UsageError, match="need 257 positions with the image's; this model has 256"):
        make_timed_input(manifest, 384, 1, 216, 10, 0)
    make_timed_input(manifest, 384, 1, 215, 10, 0)


def test_the_machine_is_described_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = describe_machine()
    assert machine.cpus >= 1 and machine.cpu and machine.versions["numpy"] == np.__version__
    assert peak_memory() >= (resident_memory() or 0) * 0.5 > 0
    assert (busy_seconds_of_others() or 0) >= 0
    rates = measure_rates(1)
    assert rates.threads == 1 and rates.gflops > 1 and rates.read_gbytes > 0.1 and rates.copy_gbytes > 0.1
    # One of the two libraries that the product is tried with is what runs a bundle.
    assert rates.int8_gops is not None and rates.int8_gops > 1
    assert rates.bytes_per_second == 1e9 * max(rates.read_gbytes, rates.copy_gbytes)
    with pytest.raises(CatpError, match="could not be measured"):
        measure_rates(0)
