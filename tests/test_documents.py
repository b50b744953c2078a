"""The documents are true: commands run as written, page by page, in one folder; figures are those they print."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from benchmark_reports import SCHEDULES, make
from documents import OTHERS, PAGES, ROOT, anchors, blocks, links, table, text_of
from vqa_folder import READABLE, write_vqa_folder

from catp.calibration.accuracy.report import AccuracyReport
from catp.calibration.benchmark.contenders.subject import OURS, Case
from catp.calibration.benchmark.results.report import read_report
from catp.calibration.encoder.report import EncoderReport
from catp.calibration.precision.report import PrecisionReport
from catp.export.demo import samples
from catp.export.verification.parity import KEPT_MISMATCH, RELATIVE_ERROR, TOKEN_MISMATCH

VENV = Path(sys.prefix)
MODEL = "Salesforce/blip2-opt-2.7b"

COMMANDS = list(
    dict.fromkeys(
        line.removeprefix("$ ") for page in PAGES for block in blocks(page, "console") for line in block.splitlines()
    )
)
"""Each once, where it first appears."""

MADE = {
    "catp-export --diagnostics -o build/demo-diagnostics": "diagnostics_bundle",
    "catp-export --encoder-pruning tome --encoder-flops 0.7 --diagnostics -o build/both": "both_bundle",
    "catp-convert madtp checkpoint_02.pth --tokenizer Salesforce/blip-vqa-base -o blip-vqa-madtp": "converted_madtp",
    "catp-export --model Salesforce/blip2-itm-vit-g -o itm-bundle": "retrieval_bundle",
    "catp-export --model Salesforce/blip-vqa-base -o vqa-bundle": "vqa_bundle",
    "catp-export --model Salesforce/blip-image-captioning-base -o caption-bundle": "caption_bundle",
    "catp-export --model Salesforce/blip-itm-base-coco -o blip-itm-bundle": "blip_retrieval_bundle",
    "catp-export --model openai/clip-vit-base-patch16 --encoder-flops 0.6 -o clip-bundle": "pruned_clip_bundle",
}
"""Commands whose output a fixture made: the same command, of a tiny checkpoint where the document names the Hub's."""


EXECUTED = pytest.mark.heavy
"""Their commands take three minutes. `make test` checks options alone; what a command does has tests of its own."""


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory, odd_checkpoint: Path) -> Path:
    """A copy of the tree, with a local folder where the documents name a model of the Hub, and a small VQAv2."""
    folder = tmp_path_factory.mktemp("documents") / "clone"
    ignore = shutil.ignore_patterns(".git", ".venv", "build", "*-bundle", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, folder, ignore=ignore, symlinks=True)
    shutil.copytree(odd_checkpoint, folder / MODEL)
    write_vqa_folder(folder / "vqav2")
    return folder


@pytest.fixture(scope="module")
def outputs(clone: Path, request: pytest.FixtureRequest) -> Iterator[dict[str, str]]:
    """What each command printed on standard output and standard error, in the order of the pages; servers go on."""
    environment = {
        **os.environ,
        "PATH": f"{VENV / 'bin'}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "110",
    }
    printed = {}
    servers = []
    for command in COMMANDS:
        if command.startswith("catp-serve"):
            servers.append(_started(command, clone, environment))
            continue
        if command == "make test":
            continue  # this very run
        if command in MADE:
            shutil.copytree(request.getfixturevalue(MADE[command]), clone / command.rpartition(" -o ")[2])
            continue
        # The tests' own environment stands in for the one that make would create.
        run = command.replace("make ", f"make -o {VENV}/.installed VENV={VENV} ", 1)
        result = subprocess.run(run, shell=True, cwd=clone, env=environment, capture_output=True, text=True)
        if command.startswith("catp-pack") and "can't reach its package index" in result.stderr:
            continue  # tests of its own are skipped by name then
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        printed[command] = result.stdout + result.stderr
    yield printed
    for server in servers:
        server.terminate()
        assert server.wait(60) == 0, f"{server.args}: it does not end"


def _started(command: str, folder: Path, environment: dict[str, str]) -> subprocess.Popen[str]:
    """A server, once it is ready; its address is the one that documents name."""
    server = subprocess.Popen(
        shlex.split(command), cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert server.stderr is not None
    seen = ""
    for line in server.stderr:
        seen += line
        if '"event": "model_ready"' in line:
            threading.Thread(target=server.stderr.read, daemon=True).start()  # it must not wait for a reader
            return server
    raise AssertionError(f"{command}\n{seen}")


def test_every_page_is_listed() -> None:
    assert set(PAGES) == {"README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))}
    assert set(MADE) <= set(COMMANDS)


def test_the_readme_is_an_introduction() -> None:
    assert len(text_of("README.md").splitlines()) <= 150


@pytest.mark.parametrize("page", [*PAGES, *OTHERS])
def test_links_lead_somewhere(page: str) -> None:
    for target in links(page):
        name, _, anchor = target.partition("#")
        path = (ROOT / page).parent / name if name else ROOT / page
        assert path.exists(), f"{page} links to {target}"
        assert not anchor or anchor in anchors(str(path.resolve().relative_to(ROOT))), f"{page} links to {target}"


def test_the_readme_has_the_two_commands_and_the_makefile_knows_them() -> None:
    assert {"make demo", "make test"} <= {
        line.removeprefix("$ ") for block in blocks("README.md", "console") for line in block.splitlines()
    }
    for target in ("demo", "test"):
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@EXECUTED
def test_make_demo_ends_with_the_right_answer(outputs: dict[str, str]) -> None:
    printed = outputs["make demo"].strip()
    assert samples()[0].answer in printed.splitlines()
    assert samples()[0].answer in [block.strip() for block in blocks("README.md", "text")]


@EXECUTED
def test_the_other_commands_do_what_they_say(outputs: dict[str, str]) -> None:
    demo = " ".join(outputs["make demo"].split())
    assert f"No --model: exporting the embedded demo. A real one: --model {MODEL}" in demo
    assert "keeps 16 of 32 query tokens" in demo
    runs = [command for command in outputs if command.startswith("catp-run")]
    assert len(runs) >= 2
    for command in runs:
        line = outputs[command].strip().splitlines()[0]
        if "--answers" in command:
            ranked = json.loads(line)
            wanted = shlex.split(command)[shlex.split(command).index("--answers") + 1].split(",")
            assert {one["answer"] for one in ranked} <= set(wanted)
        elif "--json" in command:
            assert json.loads(line)["num_kept"] == 24
        elif not {"vqa-bundle", "caption-bundle"} & {*command.split()}:  # of tiny checkpoints, which know nothing
            # Of several answers, each has its question before it.
            assert line.endswith(tuple(sample.answer for sample in samples()))


@EXECUTED
def test_engines_are_built_and_shown(outputs: dict[str, str]) -> None:
    (build,) = (output for command, output in outputs.items() if command.startswith("catp-build"))
    shown = outputs["catp-inspect build/demo-bundle"]
    key = re.search(r"engines/(tensorrt-rtx-\S+)", "".join(build.split("\n")))
    assert key is not None and f"engines {key[1]}: current" in shown


@EXECUTED
def test_a_picture_is_drawn_and_a_ratio_chosen(clone: Path, outputs: dict[str, str]) -> None:
    explained = {command: output for command, output in outputs.items() if command.startswith("catp-explain")}
    assert len(explained) == 3
    for command, output in explained.items():
        assert samples()[0].answer in output and (clone / command.rpartition(" -o ")[2]).is_file()
    (chosen,) = (output for command, output in outputs.items() if command.startswith("catp-calibrate ratio"))
    assert "Confirmation on" in chosen


@EXECUTED
def test_a_bundle_is_quantised(outputs: dict[str, str]) -> None:
    (printed,) = (
        output for command, output in outputs.items() if command.startswith("catp-calibrate precision build/demo")
    )
    assert "Published build/demo-int8" in printed
    (answer,) = (output for command, output in outputs.items() if command.startswith("catp-run build/demo-int8"))
    assert samples()[0].answer in answer


@EXECUTED
def test_a_paper_s_protocol_is_run_and_recorded(clone: Path, outputs: dict[str, str]) -> None:
    (command,) = (command for command in outputs if "--data vqav2" in command)
    header, *lines = map(json.loads, (clone / command.rpartition(" ")[2]).read_text().splitlines())
    asked = header["evaluation"]
    assert (asked["generation"]["num_beams"], asked["generation"]["length_penalty"]) == (5, -1)
    assert asked["prompt_template"] == "Question: {question} Answer:" and asked["metric"] == "VQA accuracy"
    assert sum("error" not in line for line in lines) == len(READABLE)


@EXECUTED
def test_a_server_answers(outputs: dict[str, str]) -> None:
    asked = {command: output for command, output in outputs.items() if command.startswith("curl")}
    answers = [output for command, output in asked.items() if "/chat/" in command]
    assert answers
    for output in answers:
        answer, _ = json.JSONDecoder().raw_decode(output[output.index("{") :])  # curl's progress follows
        assert answer["choices"][0]["message"]["content"] == samples()[0].answer


@EXECUTED
def test_texts_are_scored(outputs: dict[str, str]) -> None:
    (printed,) = (output for command, output in outputs.items() if command.startswith("catp-match itm-bundle --image "))
    assert re.match(r"match [01]\.\d{4}  similarity [+-][01]\.\d{4}  ", printed)
    sorted_ones = [output for command, output in outputs.items() if command.startswith("catp-match clip-bundle")]
    assert sorted_ones and all(re.search(r"^  [01]\.\d{4}  a red circle$", text, re.MULTILINE) for text in sorted_ones)


def test_every_command_of_the_project_has_an_example_in_the_readme() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    shown = "\n".join(blocks("README.md", "console"))
    assert [script for script in scripts if f"$ {script} " not in shown] == []


@pytest.mark.parametrize("command", [command for command in COMMANDS if command.startswith("catp-")])
def test_commands_have_the_options_that_they_are_given(command: str) -> None:
    name, *arguments = shlex.split(command)
    module, _, app = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][name].partition(":")
    parser: Any = typer.main.get_command(getattr(importlib.import_module(module), app))
    if hasattr(parser, "commands"):  # a group; catp-bench takes its `run` for granted
        inner = arguments.pop(0) if arguments[0] in parser.commands else "run"
        parser = parser.commands[inner]
    parser.make_context(name, arguments)  # an unknown option, or a value that it does not take, is an error


def test_the_limits_of_half_precision_are_the_exports() -> None:
    rows = {
        name: [float(cell.removesuffix(" %")) for cell in cells]
        for name, *cells in table("docs/precision.md", "limits")
    }
    assert set(rows) == set(RELATIVE_ERROR)
    for name, (error, kept, answers) in rows.items():
        wanted = RELATIVE_ERROR[name], 100 * KEPT_MISMATCH[name], 100 * TOKEN_MISMATCH[name]
        assert (error, kept, answers) == pytest.approx(wanted)


def test_the_precision_of_pairs_is_the_recorded_report() -> None:
    path = ROOT / "export" / "demo" / "nlvr" / "accuracy" / "precision" / "int8-cpu.json"
    found = PrecisionReport.model_validate_json(path.read_text())
    assert found.confirmed and found.calibration is not None and found.calibration.questions == 1000
    (change,) = found.calibration.accuracy
    claimed = f"has {100 * change.after:.1f} % right in INT8, {100 * change.before:.1f} % before"
    assert claimed in " ".join(text_of("docs/precision.md").split())


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
    """Of the accuracy page's table with that first heading: per row its method, and the numbers of each cell."""
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


@EXECUTED
def test_the_accuracy_table_is_what_the_command_prints(outputs: dict[str, str]) -> None:
    def figures(line: str) -> list[float]:
        return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line)]

    printed = [figures(line) for line in outputs["catp-eval build/demo-bundle"].splitlines() if line.count("%") >= 2]
    claimed = [figures(" ".join(row)) for row in table("docs/accuracy.md", "ratio | tokens kept")]
    assert len(claimed) == 5
    for row, expected in zip(claimed, printed, strict=True):
        assert row[:2] == expected[:2]  # ratio, tokens kept
        # One point of room: other processors round near ties differently.
        assert row[2:] == pytest.approx(expected[2:], abs=1.0)


EXAMPLES = [(page, code) for page in PAGES for code in blocks(page, "python")]


@pytest.mark.parametrize(("page", "code"), EXAMPLES, ids=[page for page, _ in EXAMPLES])
@EXECUTED
def test_the_python_examples_run(clone: Path, outputs: dict[str, str], page: str, code: str) -> None:
    result = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(samples()[0].answer)
