"""What a report says about samples whose truth is known."""

from dataclasses import replace
from io import StringIO

import pytest
from benchmark_reports import BUNDLE, MEDIANS, SCHEDULES, make
from rich.console import Console
from rich.table import Table

from catp.calibration.benchmark.contenders.subject import OURS, Case
from catp.calibration.benchmark.results.compare import compare
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.benchmark.results.tables import contender_table, encoder_table, latency_table, pruning_table

TOTAL = sum(MEDIANS.values()) + 8 * MEDIANS["decode"]  # nine decode steps


def test_rates_and_shares_of_the_limit() -> None:
    result = make(noise=0).result(Case(1, OURS, 0.0))
    assert result.milliseconds["total"].p50 == pytest.approx(TOTAL)
    assert result.tokens_per_second == pytest.approx(10 / TOTAL * 1e3)
    assert result.images_per_second == pytest.approx(1 / TOTAL * 1e3)
    # 10 GFLOP at 200 GFLOP/s are 50 ms, 100 MB at 20 GB/s are 5: the larger counts.
    assert result.roofline["vision"] == pytest.approx(50 / 250)


def test_pairs_say_what_pruning_changes_and_what_not() -> None:
    report = make()
    pruning, *others = report.speedups
    assert (pruning.ratio, pruning.baseline, pruning.baseline_ratio) == (0.5, OURS, 0)
    assert pruning.by_stage["prefill"].median == pytest.approx(2, rel=0.02) and pruning.by_stage["prefill"].is_clear
    assert pruning.by_stage["decode"].median == pytest.approx(1, rel=0.02)
    assert pruning.by_stage["total"].median == pytest.approx(TOTAL / (TOTAL - 40), rel=0.01)
    assert [(other.ratio, other.baseline) for other in others] == [(0, "transformers"), (0.5, "transformers")]
    assert others[0].by_stage["total"].median == pytest.approx(2, rel=0.01)


def test_a_calm_run_has_no_notes_but_missing_percentiles() -> None:
    report = make(rounds=100)
    assert not report.noisy and report.notes == ()
    few = make(rounds=15)
    assert few.notes == ("15 samples are too few for some percentiles, which are missing: p95 (20), p99 (100)",)
    total = few.result(Case(1, OURS, 0.0)).milliseconds["total"]
    assert total.p90 is not None and total.p95 is None


def test_noise_is_named() -> None:
    noisy = make(rounds=100, noise=0.4)
    assert noisy.noisy and any("the total of the baseline" in note for note in noisy.notes)
    assert any("yardstick" in note for note in noisy.notes)
    crowded = make(rounds=100, others_seconds=12.0)  # of 60 s on two CPUs
    assert crowded.cpu_of_others == pytest.approx(0.1) and crowded.noisy
    (note,) = crowded.notes
    assert "other processes used 10 % of the CPUs" in note
    assert not make(rounds=100, others_seconds=None).noisy


def test_a_contender_with_other_tokens_is_marked() -> None:
    report = make(rounds=100, new_tokens=[0, 1, 2, 9, 4, 5, 6, 7, 8, 9])
    assert report.result(Case(1, "transformers", 0.0)).agreeing_tokens == 3
    assert report.notes == (
        "transformers: other tokens than ours unpruned in 1 of 1 settings; earliest after 3 of 10 "
        "(transformers, batch 1)",
    )
    assert make().result(Case(1, "transformers", 0.0)).agreeing_tokens == 10


def test_a_bundle_is_paired_with_ours_ratio_by_ratio() -> None:
    report = make(against=("int8", "transformers"))
    assert [r.case for r in report.results] == [
        Case(1, OURS, 0.0), Case(1, OURS, 0.5), Case(1, "int8", 0.0), Case(1, "int8", 0.5),
        Case(1, "transformers", 0.0),
    ]  # fmt: skip
    assert report.bundles == {"int8": BUNDLE} and report.bundle == BUNDLE
    pairs = {(s.subject, s.ratio, s.baseline, s.baseline_ratio): s.by_stage for s in report.speedups}
    assert list(pairs) == [
        (OURS, 0.5, OURS, 0),
        (OURS, 0, "transformers", 0),
        (OURS, 0.5, "transformers", 0),
        ("int8", 0.5, "int8", 0),
        ("int8", 0, OURS, 0),
        ("int8", 0.5, OURS, 0.5),
        ("int8", 0, "transformers", 0),
        ("int8", 0.5, "transformers", 0),
    ]
    # It takes twice as long as ours at every ratio, and halves its own prefill by pruning.
    for ratio in (0, 0.5):
        against = pairs["int8", ratio, OURS, ratio]
        assert {stage: round(found.median, 1) for stage, found in against.items()} == dict.fromkeys(against, 0.5)
    assert pairs["int8", 0.5, "int8", 0]["prefill"].median == pytest.approx(2, rel=0.02)
    # Of a bundle it is known what it has to do; of another runtime it is not.
    shares = [report.result(Case(1, name, 0.0)).roofline for name in (OURS, "int8", "transformers")]
    assert shares[0]["vision"] == pytest.approx(2 * shares[1]["vision"], rel=0.02) and shares[2] == {}


def test_a_bundle_with_other_tokens_says_how_many_are_the_same() -> None:
    report = make(rounds=100, against=("int8",), new_tokens=[0, 1, 2, 3, 9, 5, 6, 7, 8, 9])
    assert [report.result(Case(1, "int8", ratio)).agreeing_tokens for ratio in (0.0, 0.5)] == [4, 4]
    assert report.notes == (
        "int8: other tokens than ours at the same ratio in 2 of 2 settings; earliest after 4 of 10 "
        "(int8, batch 1, ratio 0)",
    )
    console = Console(file=StringIO(), width=300)
    console.print(latency_table(report))
    assert console.file.getvalue().count("int8 (other tokens after 4 of 10)") == 2  # type: ignore[attr-defined]


def test_random_weights_are_said_to_be() -> None:
    (note,) = make(rounds=100, bundle=BUNDLE.model_copy(update={"random_weights": True})).notes
    assert "the weights of m are random" in note


def rendered(table: Table | None) -> str:
    assert table is not None
    console = Console(file=StringIO(), width=300)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_an_encoder_that_prunes_is_paired_with_the_dense_one_in_every_round() -> None:
    report = make(rounds=100, against=("dense", "transformers"), schedules={OURS: SCHEDULES})
    ours = [Case(1, OURS, ratio, flops) for flops in (0.5, 0.2) for ratio in (0.0, 0.5)]
    dense = [Case(1, "dense", ratio) for ratio in (0.0, 0.5)]
    assert [result.case for result in report.results] == [*ours, *dense, Case(1, "transformers", 0.0)]
    pairs = {(s.case, s.against): s.by_stage for s in report.speedups if report.is_over_dense(s)}
    assert set(pairs) == {(case, other) for case in ours for other in (dense[0], replace(dense[0], ratio=case.ratio))}
    # Contenders take twice as long for everything; a fifth of the encoder's work is a fifth of its time.
    both = pairs[Case(1, OURS, 0.5, 0.2), dense[0]]
    assert both["vision"].median == pytest.approx(10, rel=0.02) and both["prefill"].median == pytest.approx(4, rel=0.02)
    whole = sum(value for stage, value in MEDIANS.items() if stage != "decode")
    pruned = whole - MEDIANS["vision"] * 4 / 5 - MEDIANS["prefill"] / 2
    assert both["time_to_first_token"].median == pytest.approx(2 * whole / pruned, rel=0.02)
    # What query tokens gain is asked of an encoder that does the same.
    alone = [s for s in report.speedups if s.subject == s.baseline]
    assert [(s.case, s.against.ratio, s.against.encoder_flops) for s in alone] == [
        (ours[1], 0, 0.5), (ours[3], 0, 0.2), (dense[1], 0, None),
    ]  # fmt: skip
    assert {round(s.by_stage["vision"].median, 1) for s in alone} == {1.0}
    # Its tokens are nobody's but its own; transformers has those of the dense encoder.
    agreeing = {result.case: result.agreeing_tokens for result in report.results}
    assert set(map(agreeing.get, [*ours, *dense])) == {None} and agreeing[Case(1, "transformers", 0.0)] == 10
    assert report.notes == ()
    assert report.setup.schedule(ours[2]) == SCHEDULES[1] and report.setup.schedule(dense[0]) is None


def test_tables_say_what_an_encoder_keeps() -> None:
    report = make(rounds=100, against=("dense", "transformers"), schedules={OURS: SCHEDULES})
    (row,) = [line for line in rendered(encoder_table(report)).splitlines() if "20 %" in line and "ratio 0.5" in line]
    assert [cell.strip() for cell in row.split("│")][2:8] == ["catp", "20 %", "0.5", "31", "2", "dense, ratio 0.5"]
    assert "transformers" not in rendered(encoder_table(report)) and "50 %" in rendered(latency_table(report))
    assert rendered(pruning_table(report)).count("50 %") == 1
    assert rendered(contender_table(report)).count("transformers") == 6  # four settings of ours, two of the dense one
    assert encoder_table(make()) is None and "encoder" not in rendered(latency_table(make()))


def test_without_a_dense_encoder_the_largest_schedule_is_the_baseline() -> None:
    report = make(rounds=100, against=(), schedules={OURS: SCHEDULES})
    over = [(s.case, s.against) for s in report.speedups if report.is_over_dense(s)]
    assert over == [(Case(1, OURS, ratio, 0.2), Case(1, OURS, 0.0, 0.5)) for ratio in (0.0, 0.5)]
    assert "catp, encoder 50 %, ratio 0" in rendered(encoder_table(report))
    (note,) = report.notes
    assert note.startswith("no dense encoder was timed in the same rounds")


def test_a_calibrated_bundle_with_other_tokens_by_the_same_schedule_is_marked() -> None:
    schedules = {OURS: SCHEDULES, "int8": SCHEDULES}
    report = make(rounds=100, against=("int8",), schedules=schedules, new_tokens=[0, 1, 2, 3, 9, 5, 6, 7, 8, 9])
    assert {r.agreeing_tokens for r in report.results if r.subject == "int8"} == {4}
    assert any(note.startswith("int8: other tokens than ours at the same ratio and schedule") for note in report.notes)
    pairs = [(s.case, s.against) for s in report.speedups if (s.subject, s.baseline) == ("int8", OURS)]
    assert len(pairs) == 4 and all(replace(case, subject=OURS) == other for case, other in pairs)


def test_a_report_survives_json() -> None:
    report = make(against=("int8", "transformers"))
    assert BenchmarkReport.model_validate_json(report.model_dump_json()) == report


def test_schedules_survive_json() -> None:
    report = make(against=("dense",), schedules={OURS: SCHEDULES})
    assert BenchmarkReport.model_validate_json(report.model_dump_json()) == report
    (found,) = {c.encoder_flops for c in compare(report, report, 0.05).changes if c.subject == OURS} - {0.5}
    assert found == 0.2


def test_reports_of_before_bundles_were_compared_are_still_read() -> None:
    content = make().model_dump(mode="json")
    del content["bundles"]
    for name in ("precisions", "bytes", "random_weights"):
        del content["bundle"][name]
    report = BenchmarkReport.model_validate(content)
    assert report.bundles == {} and report.bundle.precision_label == "fp32"
    assert compare(report, make(), 0.05).notes == ()
