"""Time inside the graphs: which run and which stage an operator's time belongs to, and that it is there at all."""

import json
from collections import Counter
from pathlib import Path

import pytest
from benchmark_reports import RATES
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.subject import Case
from catp.calibration.benchmark.kernel_times import KINDS, kind_of
from catp.calibration.benchmark.kernels import UNSEEN, _runs, _summarize
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app
from catp.calibration.commands.calibrate import app as calibrate
from catp.runtime.bundle.chains import DECODE_GRAPH

RUNNER = CliRunner()


@pytest.mark.parametrize(
    ("operator", "kind"),
    [
        ("DynamicQuantizeMatMul", "products"), ("MatMulIntegerToFloat", "products"), ("MatMulNBits", "products"),
        ("FusedGemm", "products"), ("Conv", "products"), ("GroupQueryAttention", "attention"),
        ("Softmax", "attention"), ("BiasGelu", "activations"), ("SkipLayerNormalization", "normalisation"),
        ("Transpose", "everything else"), ("Greater", "everything else"),
    ],
)  # fmt: skip
def test_operators_have_a_kind(operator: str, kind: str) -> None:
    assert kind_of(operator) == kind


def event(name: str, start: int, duration: int, operator: str | None = None) -> dict[str, object]:
    return {
        "cat": "Node" if operator else "Session", "name": name, "ts": start, "dur": duration,
        "args": {"op_name": operator} if operator else {},
    }  # fmt: skip


def test_events_belong_to_the_run_that_they_lie_in() -> None:
    events = [
        event("session_initialization", 0, 5),
        event("a_kernel_time", 11, 3, "MatMul"), event("b_kernel_time", 15, 2, "Add"),
        event("c_kernel_time", 18, 1, "Add"), event("model_run", 10, 10),
        event("a_kernel_time", 31, 4, "MatMul"), event("a_fence_before", 36, 9, "MatMul"), event("model_run", 30, 10),
    ]  # fmt: skip
    assert _runs(events) == [Counter(MatMul=3, Add=3), Counter(MatMul=4)]


@pytest.mark.parametrize("own_decode", [True, False])
def test_an_answer_is_one_prefill_and_the_steps_after_it(own_decode: bool) -> None:
    """Three new tokens: prefill, two steps. Answers that are not looked at took far longer."""
    answers = [(900, 900, 900)] * UNSEEN + [(50, 7, 9), (40, 5, 6), (60, 1, 1)]
    prefill = [Counter(MatMul=p) for p, *_ in answers]
    steps = [Counter(MatMul=s, Add=1) for _, *both in answers for s in both]
    mixed = [Counter(MatMul=t, **({} if i == 0 else {"Add": 1})) for answer in answers for i, t in enumerate(answer)]
    images = [Counter(Conv=1000)] * len(answers)
    graphs = {"language_model": prefill, DECODE_GRAPH: steps} if own_decode else {"language_model": mixed}
    found = _summarize(Case(1, "x", 0.5), {"vision_encoder": images, "qformer_voting": images, **graphs}, 3, 5.0)
    assert found.stages["prefill"]["products"] == pytest.approx(0.050)
    assert found.operators["decode"] == pytest.approx({"MatMul": 0.011, "Add": 0.002})
    assert found.total("products") == pytest.approx(2 + 0.050 + 0.011)


@pytest.mark.heavy  # a benchmark at several ratios
def test_a_benchmark_says_where_time_goes(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two bundles, one of which has a graph for decode steps."""
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    few = ["--samples", "16", "--questions", "2", "--min-kept-overlap", "0", "--max-accuracy-drop", "0.9"]
    quick = ["--to", "int8", "--decode", "int4", "--for", "cpu", "--no-sensitivity"]
    other = tmp_path / "other"
    made = RUNNER.invoke(calibrate, ["precision", str(demo_bundle), "-o", str(other), *quick, *few])
    assert made.exit_code == 0, made.output
    asked = ["--ratios", "0.5", "--batch", "2", "--iterations", "2", "--warmup", "0", "--new-tokens", "4", "--kernels"]
    result = RUNNER.invoke(app, ["run", str(demo_bundle), "--against", str(other), *asked, "--json"])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate(json.loads(result.stdout))
    assert [(k.subject, k.ratio) for k in report.kernels] == [
        (name, ratio) for name in ("catp", "other") for ratio in (0.0, 0.5)
    ]
    for found in report.kernels:
        # Operators take part of the answer; its other part is preparation, and what lies between operators.
        assert 0 < sum(map(found.total, KINDS)) < found.answer_ms
        assert list(found.stages) == ["vision", "qformer", "prefill", "decode"]
        for stage, kinds in found.stages.items():
            assert sum(kinds.values()) == pytest.approx(sum(found.operators[stage].values()))
            assert list(kinds) == list(KINDS) and kinds["products"] > 0
    float_bundle, calibrated = report.kernels[0], report.kernels[-1]
    assert "MatMulNBits" in calibrated.operators["decode"] and "MatMulNBits" not in float_bundle.operators["decode"]
    assert "GroupQueryAttention" in calibrated.operators["decode"]
    assert "Inside the graphs of one answer" in result.stderr


def test_what_can_not_be_profiled_is_refused(demo_bundle: Path) -> None:
    result = RUNNER.invoke(app, ["run", str(demo_bundle), "--provider", "cuda", "--kernels"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --kernels and --provider cuda: operators are profiled on a CPU")
