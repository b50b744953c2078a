"""catp-bench as a user calls it. No test asserts how long anything takes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_reports import RATES, make
from PIL import Image
from typer.testing import CliRunner, Result

from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app

RUNNER = CliRunner()


def call(*arguments: object) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def _known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)


@pytest.mark.usefixtures("_known_rates")
def test_end_to_end(demo_bundle: Path, tmp_path: Path) -> None:
    output, plot = tmp_path / "report.json", tmp_path / "latency.png"
    result = call(
        "run", demo_bundle, "--ratios", "0.5,0.75", "--batch", "2,1", "--iterations", 6, "--warmup", 1, "--threads", 1,
        "--against", "transformers,transformers-bf16", "-o", output, "--plot", plot, "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == 1
    content: dict[str, Any] = json.loads(result.stdout)
    assert content == json.loads(output.read_text()) and content["schema_version"] == 1
    report = BenchmarkReport.model_validate(content)
    settings = [(r.batch, r.subject, r.ratio, r.num_kept) for r in report.results]
    ours = [("catp", 0.0, 32), ("catp", 0.5, 16), ("catp", 0.75, 8)]
    theirs = [("transformers", 0.0, 32), ("transformers-bf16", 0.0, 32)]
    assert settings == [(batch, *row) for batch in (1, 2) for row in (*ours, *theirs)]
    for found in report.results:
        assert [len(row) for row in found.token_ids] == [10] * found.batch and found.repeatable
        assert {len(values) for values in found.samples_ms.values()} == {6} == {report.rounds}
        # The parts make the whole, whoever is timed.
        for i, total in enumerate(found.samples_ms["total"]):
            parts = [found.samples_ms[stage][i] for stage in ("preprocess", "vision", "qformer", "prefill", "host")]
            assert sum(parts) + 9 * found.samples_ms["decode"][i] == pytest.approx(total, abs=0.01)
            first, rest = (found.samples_ms[s][i] for s in ("time_to_first_token", "time_per_output_token"))
            assert first + 9 * rest == pytest.approx(total, abs=0.01)
    # The same weights, images and prompt: float32 gives the same tokens as ours unpruned.
    agreeing = {(r.subject, r.batch): r.agreeing_tokens for r in report.results}
    assert agreeing["transformers", 1] == agreeing["transformers", 2] == 10 and agreeing["catp", 1] is None
    assert [load.subject for load in report.loads] == ["catp", "transformers", "transformers-bf16"]
    assert report.setup.threads == 1 and report.setup.warmup_excluded and report.setup.load_excluded
    assert len(report.speedups) == 2 * (2 + 2 * 3)
    assert report.break_even is not None and report.break_even.rounds == 6
    assert [(p.batch, p.ratio, p.num_kept) for p in report.break_even.payoffs] == [
        (1, 0.5, 16), (1, 0.75, 8), (2, 0.5, 16), (2, 0.75, 8),
    ]  # fmt: skip
    assert "6 samples are too few for some percentiles" in result.stderr
    # The cost card comes before anything is timed.
    titles = [
        "Cost of catp-demo",
        "Before timing",
        "Medians of 6 rounds",
        "Share of",
        "Pruned over",
        "Does pruning pay?",
        "Times as fast as others",
    ]
    assert sorted(titles, key=result.stderr.index) == titles
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    clean = call("compare", output, output, "--json")
    assert clean.exit_code == 0 and not json.loads(clean.stdout)["slower"]
    assert "No stage is more than 5 % slower" in clean.stderr


@pytest.mark.usefixtures("_known_rates")
def test_the_baseline_alone_for_a_time(demo_bundle: Path) -> None:
    arguments = (
        "--ratios",
        "0",
        "--batch",
        1,
        "--warmup",
        0,
        "--threads",
        1,
        "--new-tokens",
        1,
        "--positions",
        "compact",
    )
    result = call(demo_bundle, *arguments, "--min-time", "0.1s", "--json")  # `run` need not be said
    assert result.exit_code == 0, result.output
    (found,) = BenchmarkReport.model_validate_json(result.stdout).results
    assert sum(found.samples_ms["total"]) >= 100 > sum(found.samples_ms["total"][:-1])
    assert "decode" not in found.milliseconds and [len(row) for row in found.token_ids] == [1]
    assert "Pruned over" not in result.stderr and "as others" not in result.stderr


def test_compare_fails_where_something_got_slower(tmp_path: Path) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(make().model_dump_json())
    new.write_text(make(seed=1, slowdown=lambda case, stage: 1.1).model_dump_json())
    result = call("compare", old, new, "--json")
    assert result.exit_code == 1 and json.loads(result.stdout)["slower"]
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {new}: ") and "more than 5 % slower" in last
    assert call("compare", old, new, "--threshold", 0.2).exit_code == 0
    assert call("compare", new, old).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ratios", "0,one"], "separated by commas"),
        (["--ratios", "0.5,1"], "0 <= ratio < 1"),
        (["--batch", "0"], "whole numbers from 1 on"),
        (["--batch", "x"], "whole numbers from 1 on"),
        (["--iterations", "5", "--min-time", "5"], "give one of them"),
        (["--min-time", "soon"], "give seconds"),
        (
            ["--against", "tensorflow"],
            "accepted: transformers, transformers-bf16, compile, openvino, openvino-int8, and folders of other bundles",
        ),
        (["--against", "transformers", "--checkpoint", "{tmp}/none"], "transformers can't load it"),
        (["--prompt-tokens", "1000"], "this model has 256"),
        (["--against", "compile", "--warmup", "0"], "compiles while it is warmed up"),
        (["--against", "{tmp}"], "it has no catp.json"),
        (["--synthetic", "tiny"], "give one of them"),
        (["--keep", "{tmp}"], "only what --synthetic makes"),
        (["--provider", "abacus"], "accepted: cpu"),
        (["--engines", "some"], "engines are for tensorrt"),
        (["-o", "none/report.json"], "there is no folder none"),
        (["-o", "/"], "it is a folder"),
        (["--plot", "latency.svg"], "ends in .png"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else None,
)
@pytest.mark.usefixtures("_known_rates")
def test_bad_input_is_one_clear_line(demo_bundle: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    result = call("run", demo_bundle, "--warmup", 0, *given)
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ") and message in line
    assert not result.stdout


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(make().model_dump_json())
    for content, message in (("{}", "measure it again"), ("no", "measure it again"), (None, "no such file")):
        if content is not None:
            bad.write_text(content)
        else:
            bad.unlink()
        result = call("compare", good, bad)
        assert result.exit_code == 2 and message in result.stderr
        assert len(result.stderr.splitlines()) == 1
    assert call("compare", good, good, "--threshold", -1).exit_code == 2


def test_a_bundle_alone_needs_no_torch(demo_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfor name in ('torch', 'transformers', 'onnx', 'matplotlib', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
    )
    code = "from catp.calibration.commands.bench import app; app()"

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", code, "run", str(demo_bundle), *map(str, arguments)]
        command += ["--ratios", "0", "--batch", "1", "--iterations", "1", "--warmup", "0", "--threads", "1"]
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    assert run().returncode == 0
    for arguments, extra in (("--against", "transformers"), "export,cpu"), (("--plot", tmp_path / "p.png"), "eval"):
        result = run(*arguments)
        assert result.returncode == 2 and f"pip install '.[{extra}]'" in result.stderr
