"""catp-bench of a bundle with a Flan-T5."""

import time
from pathlib import Path

import numpy as np
import pytest
from benchmark_reports import RATES
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.hugging_face import TransformersSubject
from catp.calibration.benchmark.contenders.registry import open_bundles
from catp.calibration.benchmark.contenders.subject import Case, TimedInput, make_picture
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app
from catp.runtime.errors import UsageError

RUNNER = CliRunner()


def test_end_to_end(t5_bundle: Path, t5_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    arguments = ["--ratios", "0.5", "--batch", "1,2", "--iterations", "2", "--warmup", "0", "--threads", "1", "--json"]
    arguments += ["--against", "transformers", "--checkpoint", str(t5_checkpoint)]
    result = RUNNER.invoke(app, [str(t5_bundle), *arguments])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    rows = [("catp", 0.0, 24), ("catp", 0.5, 12), ("transformers", 0.0, 24)]
    assert [(r.batch, r.subject, r.ratio, r.num_kept) for r in report.results] == [
        (batch, *row) for batch in (1, 2) for row in rows
    ]
    for found in report.results:
        assert [len(row) for row in found.token_ids] == [10] * found.batch
        for i, total in enumerate(found.samples_ms["total"]):
            parts = [found.samples_ms[stage][i] for stage in ("preprocess", "vision", "qformer", "prefill", "host")]
            assert min(parts[:-1]) > 0
            assert sum(parts) + 9 * found.samples_ms["decode"][i] == pytest.approx(total, abs=0.01)
        if found.subject == "catp":
            assert set(found.roofline) == {"vision", "qformer", "prefill", "decode"}
    # The same weights, images and prompt, and a decoder that is deeper than its encoder.
    assert [r.agreeing_tokens for r in report.results if r.subject == "transformers"] == [10, 10]
    assert report.break_even is None and any("one pass at one rate" in note for note in report.notes)
    assert "prefill" in result.stderr and "Share of" in result.stderr


def test_prefill_of_transformers_holds_the_text_encoder(t5_checkpoint: Path) -> None:
    subject = TransformersSubject("transformers", str(t5_checkpoint), threads=1)
    timed_input = TimedInput([make_picture(np.random.default_rng(0))], [5, 6, 7], new_tokens=3)
    encoder = subject._model.language_model.encoder
    encoder.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    sample = subject.run(timed_input, Case(1, "transformers", 0.0))
    assert sample.milliseconds["prefill"] >= 200
    assert sample.milliseconds["host"] < sample.milliseconds["total"] - 200


@pytest.mark.parametrize("name", ["compile", "openvino", "openvino-int8"])
def test_runtimes_that_were_not_made_for_it_are_refused_by_name(t5_bundle: Path, name: str) -> None:
    with pytest.raises(UsageError, match=f"--against {name}: .*; accepted: transformers, transformers-bf16, and"):
        open_bundles(t5_bundle, {name: None}, (0.0,))
