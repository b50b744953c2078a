"""Tables and figures in the documents are those of the recorded reports, as their scripts print them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from benchmark_reports import SCHEDULES, make
from documents import ROOT, table, text_of

from catp.calibration.accuracy.report import AccuracyReport
from catp.calibration.benchmark.contenders.subject import OURS, Case
from catp.calibration.benchmark.results.report import read_report
from catp.calibration.encoder.report import EncoderReport
from catp.calibration.precision.report import PrecisionReport


def test_the_precision_of_pairs_is_the_recorded_report() -> None:
    path = ROOT / "export" / "demo" / "nlvr" / "accuracy" / "precision" / "int8-cpu.json"
    found = PrecisionReport.model_validate_json(path.read_text())
    assert found.confirmed and found.calibration is not None and found.calibration.questions == 1000
    (change,) = found.calibration.accuracy
    claimed = f"has {100 * change.after:.1f} % right in INT8, {100 * change.before:.1f} % before"
    assert claimed in " ".join(text_of("docs/precision.md").split())


def test_the_precision_table_of_both_prunings_is_the_recorded_reports() -> None:
    records = ROOT / "export" / "demo" / "fine" / "accuracy" / "precision"
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "fine_precision.py"), "--record", str(records)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() in text_of("docs/precision.md")
    before = []
    for encoder in ("dense", "tome"):
        report = PrecisionReport.model_validate_json((records / f"{encoder}-int8.json").read_text())
        assert report.calibration is not None and report.calibration.questions == 1000
        before.append(f"{100 * report.calibration.accuracy[0].before:.1f} %")
    assert f"1,000 questions, {' and '.join(before)} before" in text_of("docs/precision.md")


def test_the_precision_table_is_the_recorded_reports() -> None:
    rows = table("docs/precision.md", "for | matrix products")
    folder = ROOT / "export" / "demo" / "accuracy" / "precision"
    assert {path.name for path in folder.iterdir()} == {row[1].rpartition("/")[2].strip(") ") for row in rows}
    for purpose, link, *cells in rows:
        report = PrecisionReport.model_validate_json((folder / link.rpartition("/")[2].strip(") ")).read_text())
        found, graphs = report.calibration, report.graphs
        assert report.confirmed and found is not None and graphs is not None and found.questions == 1000
        quantised = [size.quantization for size in graphs.values() if size.quantization]
        assert {quantization.purpose for quantization in quantised} == {purpose}
        figures = [[float(number) for number in re.findall(r"[-+]?\d+(?:\.\d+)?", cell)] for cell in cells]
        for claimed, change in zip(figures, found.accuracy):
            assert claimed == pytest.approx([100 * x for x in (change.after, *change.interval_95)], abs=0.051)
            assert change.difference >= -0.01
        assert figures[2] == pytest.approx([100 * found.kept_overlap], abs=0.051) and found.kept_overlap >= 0.98
        kept = sum(len(quantization.kept) for quantization in quantised)
        assert figures[4] == [kept, kept + sum(quantization.layers for quantization in quantised)]
        for quantization in quantised:
            factor = quantization.bytes_before / quantization.bytes_after
            assert factor >= {"int8": 3.5, "fp8": 3.5, "int4": 6}[quantization.format]
            assert f"{quantization.format} {factor:.1f}x" in cells[3]


def test_the_latency_tables_are_the_recorded_report() -> None:
    folder = ROOT / "tests" / "benchmarks"
    command = [sys.executable, str(folder / "mid_size.py"), "--record", str(folder / "records" / "mid-size.json")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tables = [found.strip() for found in printed.split("\n\n")]
    assert len(tables) == 4 and all(found in text_of("docs/benchmark.md") for found in tables)
    report = read_report(folder / "records" / "mid-size.json")
    assert not report.noisy and not [note for note in report.notes if "other tokens" in note]


def test_an_encoder_that_prunes_is_compared_by_the_recorded_report() -> None:
    folder = ROOT / "tests" / "benchmarks"
    record = folder / "records" / "mid-size-encoder.json"
    command = [sys.executable, str(folder / "mid_size.py"), "--record", str(record)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    (ratios,) = (found for found in printed.split("\n\n") if "| itself unpruned |" in found)
    assert ratios.count("encoder at 20 %") == 4 and ratios.strip() in text_of("docs/benchmark.md")


def test_a_report_with_encoders_that_prune_has_a_table_more(tmp_path: Path) -> None:
    against, schedules = (
        ("int8-int4", "pruned", "pruned-int8-int4"),
        dict.fromkeys(("pruned", "pruned-int8-int4"), SCHEDULES),
    )
    recorded = tmp_path / "report.json"
    recorded.write_text(make(against=against, schedules=schedules).model_dump_json())
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "mid_size.py"), "--record", str(recorded)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "| fp32, encoder at 20 % | 0.5 | 31 | 2 of 10 |" in printed
    assert printed.count("encoder at 50 %") == 3 * 2 * 2  # two tables of all settings and one of these, two of each


@pytest.mark.parametrize(
    ("script", "record", "count"),
    [
        ("encoder_accuracy.py", ROOT / "export" / "demo" / "vqa" / "accuracy" / "encoder-pruning.json", 3),
        ("pairs_accuracy.py", ROOT / "export" / "demo" / "nlvr" / "accuracy" / "encoder-pruning.json", 1),
        ("both_prunings.py", ROOT / "export" / "demo" / "fine" / "accuracy" / "both-prunings.json", 5),
        ("both_speed.py", ROOT / "tests" / "benchmarks" / "records", 2),
        ("encoder_speed.py", ROOT / "tests" / "benchmarks" / "records" / "encoder-speed.json", 1),
    ],
)
def test_the_tables_of_encoder_pruning_are_the_recorded_reports(script: str, record: Path, count: int) -> None:
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / script), "--record", str(record)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    parts = [part.strip() for part in printed.split("\n\n")]
    tables = [part for part in parts if part.startswith("|")]
    page = text_of("docs/encoder-pruning.md")
    assert len(tables) == count and all(table in page for table in tables)
    assert all(part in page for part in parts if part.startswith("MADTP's scores"))


@pytest.mark.parametrize(("script", "count"), [("serving.py", 1), ("serving_costs.py", 3)])
def test_the_tables_of_servers_are_the_recorded_reports(script: str, count: int) -> None:
    folder = ROOT / "tests" / "benchmarks"
    record = folder / "records" / f"{script.removesuffix('.py').replace('_', '-')}.json"
    command = [sys.executable, str(folder / script), "--record", str(record)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tables = [part.strip() for part in printed.split("\n\n")]
    assert len(tables) == count and all(table in text_of("docs/serving.md") for table in tables)


def test_what_is_said_of_both_prunings_at_full_size_is_the_recorded_report() -> None:
    report = read_report(ROOT / "tests" / "benchmarks" / "records" / "both-prunings-speed-full.json")
    found = {
        one.encoder_flops: one.by_stage
        for one in report.speedups
        if (one.baseline, one.baseline_ratio, one.ratio) == ("dense", 0, 0.5)
    }
    first, whole = ([found[share][stage].median for share in (0.5, 0.2)] for stage in ("time_to_first_token", "total"))
    page = " ".join(text_of("docs/encoder-pruning.md").split())
    assert f"first token comes {first[0]:.1f} times as fast at half of the encoder's work, {first[1]:.1f} times" in page
    assert f"ten tokens {whole[0]:.1f} and {whole[1]:.1f} times" in page and first[0] >= 1.5 and first[1] >= 2


def test_what_is_said_of_votes_after_a_pruned_encoder_is_the_recorded_reports() -> None:
    folder = ROOT / "export" / "demo" / "fine" / "accuracy" / "votes"

    def dense(name: str) -> float:
        scores = AccuracyReport.model_validate_json((folder / f"dense-{name}.json").read_text()).scores
        return next(s.accuracy for s in scores if (s.ratio, s.positions) == (0.5, "original"))

    def pruned(name: str) -> float:
        scores = EncoderReport.model_validate_json((folder / f"tome-{name}.json").read_text()).scores
        return next(s.accuracy for s in scores if "0.5 of" in s.setting.name and s.setting.ratio == 0.5)

    page = " ".join(text_of("docs/encoder-pruning.md").split())
    for words, values in (
        ("answers {:.1f} % after the dense encoder and {:.1f} % after ToMe", (dense("catp"), pruned("catp"))),
        ("it has them back: {:.1f} %", (pruned("catp-patches"),)),
        ("`coverage`, with {:.1f} and {:.1f} %", (dense("coverage"), pruned("coverage"))),
    ):
        assert words.format(*(100 * value for value in values)) in page


def test_what_is_said_of_pruning_at_full_size_is_the_recorded_report() -> None:
    report = read_report(ROOT / "tests" / "benchmarks" / "records" / "blip2-opt-2.7b.json")
    page = text_of("docs/benchmark.md")
    text = " ".join(page[page.index("At the sizes of blip2-opt-2.7b") :].partition("\n\n")[0].split())
    before, after = (report.result(Case(1, OURS, ratio)).milliseconds for ratio in (0.0, 0.5))
    assert f"takes {after['prefill'].p50:.0f} ms instead of {before['prefill'].p50:.0f}" in text
    (pruned,) = report.speedups
    total, first = pruned.by_stage["total"], pruned.by_stage["time_to_first_token"]
    assert total.interval_95 is not None and total.interval_95[0] > 1 and not report.noisy
    low, high = total.interval_95
    assert f"{first.median:.2f} times as fast and the whole answer {total.median:.2f} ({low:.2f} to {high:.2f})" in text
    assert report.break_even is not None
    (payoff,) = report.break_even.payoffs
    assert f"a vote of {payoff.vote_ms.median:.1f} ms ({100 * payoff.vote_of_total:.1f} % of the total)" in text
    assert payoff.pays == "yes"


def recorded(seed: int) -> AccuracyReport:
    report = AccuracyReport.model_validate_json(
        (ROOT / "export" / "demo" / "accuracy" / f"seed-{seed}.json").read_text()
    )
    assert report.questions == 1000 and report.evaluation.metric == "exact match"
    return report


def rows_of(heading: str) -> list[tuple[str, list[list[float]]]]:
    """Rows of the accuracy page's table with that first heading: the method, and the numbers of each cell."""
    rows = [[cell.replace("*", "") for cell in row] for row in table("docs/accuracy.md", heading)]
    return [(method, [[float(n) for n in re.findall(r"[\d.]+", cell)] for cell in cells]) for method, *cells in rows]


@pytest.mark.parametrize("positions", ["original", "compact"])
def test_the_methods_table_is_the_recorded_report(positions: str) -> None:
    report = recorded(0)
    scores = {(s.method, s.ratio): s for s in report.scores if s.positions == positions}
    rows = rows_of(f"{positions} positions")
    assert [method for method, _ in rows] == list(report.evaluation.methods)
    for method, cells in rows:
        for ratio, cell in zip(report.evaluation.ratios, cells, strict=True):
            score = scores[method, ratio]
            assert cell == pytest.approx([100 * x for x in (score.accuracy, *score.interval_95)], abs=0.051)


def test_the_tables_of_differences_are_the_recorded_report() -> None:
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "method_differences.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tables = [part.strip() for part in printed.split("\n\n")]
    page, report = text_of("docs/accuracy.md"), recorded(0)
    assert len(tables) == 3 and all(table in page for table in tables)
    assert report.test == "McNemar's exact test" and f"for all {report.comparisons} comparisons" in page
    found = {(d.method, d.ratio, d.positions): d for d in report.differences if d.against == "random"}
    for method, *cells in table("docs/accuracy.md", "minus random"):
        for ratio, cell in zip((0.25, 0.5, 0.75, 0.9), cells, strict=True):
            for positions, part in zip(report.evaluation.positions, cell.split(" / "), strict=True):
                difference = found[method, ratio, positions]
                assert (part == "none") == ((difference.p_corrected or 0) >= 0.05)
                assert part == "none" or float(part) == pytest.approx(100 * difference.difference, abs=0.051)


def test_the_second_models_table_is_the_recorded_report() -> None:
    report = recorded(1)
    scores = {(s.method, s.ratio, s.positions): 100 * s.accuracy for s in report.scores}
    rows = rows_of("second model")
    assert [method for method, _ in rows] == list(report.evaluation.methods)
    for method, cells in rows:
        for ratio, cell in zip((0.25, 0.5, 0.75, 0.9), cells, strict=True):
            wanted = [scores[method, ratio, positions] for positions in ("original", "compact")]
            assert cell == pytest.approx(wanted, abs=0.051)


def test_the_tables_of_two_worlds_are_the_recorded_reports() -> None:
    command = [sys.executable, str(ROOT / "tests" / "benchmarks" / "two_worlds.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tables, page = [part.strip() for part in printed.split("\n\n")], text_of("docs/accuracy.md")
    assert len(tables) == 6 and all(part in page for part in tables)
    folder = ROOT / "export" / "demo" / "fine" / "accuracy" / "methods"
    reports = {path.stem: AccuracyReport.model_validate_json(path.read_text()) for path in folder.glob("*.json")}
    assert {name: report.evaluation.data for name, report in reports.items()} == {
        "scenes": "demo",
        "easy-vqa": "easy-vqa",
    }
    assert {report.evaluation.bundle for report in reports.values()} == {reports["scenes"].evaluation.bundle}
    assert f"{reports['easy-vqa'].questions:,} questions about {reports['easy-vqa'].images} pictures" in page
    # A cell, read from the report by hand.
    score = next(
        s for s in reports["easy-vqa"].scores if (s.method, s.ratio, s.positions) == ("coverage", 0.75, "compact")
    )
    cells = table("docs/accuracy.md", "compact positions | | 0 | 0.25 | 0.5 | 0.75 | 0.9")
    (row,) = [cells for cells in cells if cells[:2] == ["coverage", "easy-vqa"]]
    assert float(row[5].split()[0]) == pytest.approx(100 * score.accuracy, abs=0.051)


def test_the_tables_of_tasks_are_the_recorded_reports() -> None:
    folder = ROOT / "tests" / "benchmarks"
    command = [sys.executable, str(folder / "tasks.py"), "--record", str(folder / "records" / "tasks")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    tables, page = [part.strip() for part in printed.split("\n\n")], text_of("docs/benchmark.md")
    assert len(tables) == 3 and all(found in page for found in tables)
    assert all(len(found.splitlines()) == 2 + 5 for found in tables)  # five tasks
    captions = read_report(folder / "records" / "tasks" / "blip-caption.json")
    (pruned,) = (one for one in captions.speedups if (one.subject, one.baseline) == ("pruned", OURS))
    assert f"first word comes {pruned.by_stage['time_to_first_token'].median:.1f} times as fast" in page
    reached = captions.result(pruned.case).roofline["decode"]
    assert f"at {100 * reached:.0f} % of the rate that the memory allows" in " ".join(page.split())


def test_what_is_said_of_growth_is_the_recorded_report() -> None:
    folder = ROOT / "tests" / "benchmarks"
    command = [sys.executable, str(folder / "growth.py"), "--record", str(folder / "records" / "growth.json")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    page = text_of("docs/benchmark.md")
    assert printed.strip() in page and len(printed.splitlines()) == 2 + 6
    curves = json.loads((folder / "records" / "growth.json").read_text())["curves"]
    one, two = (point["milliseconds"]["total"] for point in curves[-1]["points"])
    assert f"makes an answer {one / two:.1f} times as fast" in page
