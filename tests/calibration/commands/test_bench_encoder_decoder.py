"""catp-bench of a bundle with a Flan-T5."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_reports import RATES
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.pytorch.query_tokens import QueryTokenAnswers
from catp.calibration.benchmark.contenders.subject import Case, TimedInput, make_picture
from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import cost_of
from catp.calibration.benchmark.costs.geometry import read_geometry
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app
from catp.calibration.commands.calibrate import app as calibrate
from catp.runtime.bundle.folder import open_bundle

pytestmark = pytest.mark.heavy

RUNNER = CliRunner()


def test_end_to_end(t5_bundle: Path, t5_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    arguments = ["--ratios", "0.5", "--batch", "1,2", "--iterations", "2", "--warmup", "0", "--threads", "1", "--json"]
    arguments += ["--against", "transformers", "--checkpoint", str(t5_checkpoint), "--kernels"]
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
    assert report.break_even is not None and report.break_even.largest_prompt == 2048
    assert [(payoff.batch, payoff.ratio) for payoff in report.break_even.payoffs] == [(1, 0.5), (2, 0.5)]
    for inside in report.kernels:
        assert list(inside.stages) == ["vision", "qformer", "prefill", "decode"]
        # Of prefill, the text encoder is one part: the decoder's table of words and its head are read in every step.
        assert inside.operators["prefill"]["Attention"] > 0 < inside.operators["decode"]["ArgMax"]
        assert "ArgMax" in inside.operators["prefill"] and "TensorScatter" in inside.operators["prefill"]
    assert "prefill" in result.stderr and "Share of" in result.stderr


def test_prefill_of_transformers_holds_the_text_encoder(t5_checkpoint: Path) -> None:
    subject = QueryTokenAnswers("transformers", str(t5_checkpoint), 1, "encoder-decoder")
    timed_input = TimedInput([make_picture(np.random.default_rng(0))], [5, 6, 7], new_tokens=3)
    encoder = subject._model.language_model.encoder
    encoder.register_forward_pre_hook(lambda *_: time.sleep(0.2))
    sample = subject.run(timed_input, Case(1, "transformers", 0.0))
    assert sample.milliseconds["prefill"] >= 200
    assert sample.milliseconds["host"] < sample.milliseconds["total"] - 200


def test_compile_compiles_the_encoder_too(t5_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed_input = TimedInput([make_picture(np.random.default_rng(0))], [5, 6, 7], new_tokens=3)
    wanted = QueryTokenAnswers("transformers", str(t5_checkpoint), 1, "encoder-decoder").run(
        timed_input, Case(1, "x", 0.0)
    )
    compiled: list[str] = []

    def compile(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled.append(type(getattr(function, "__self__", None)).__name__)
        return lambda *args, **kwargs: function(*args, **kwargs)

    monkeypatch.setattr(torch, "compile", compile)
    subject = QueryTokenAnswers("compile", str(t5_checkpoint), 1, "encoder-decoder", compiled=True)
    assert "T5Stack" in compiled and "T5ForConditionalGeneration" in compiled
    assert subject.run(timed_input, Case(1, "x", 0.0)).token_ids == wanted.token_ids


def test_what_an_int8_bundle_reads(t5_bundle: Path, tmp_path: Path) -> None:
    """Bytes of quantised graphs: tables of words are looked up, also that of a head which was its own."""
    few = ["--samples", "16", "--questions", "4", "--no-sensitivity", "--max-accuracy-drop", "0.9"]
    arguments = ["--language", "int8", "--for", "cpu", "--min-kept-overlap", "0", "-o", str(tmp_path / "int8"), *few]
    assert RUNNER.invoke(calibrate, ["precision", str(t5_bundle), *arguments]).exit_code == 0
    bundle = open_bundle(tmp_path / "int8")
    cost = cost_of(bundle.manifest, read_geometry(bundle), Workload(1, 12, 16, 10), 0.5)
    decoder = bundle.manifest.graphs["text_decoder"]
    assert decoder.quantization is not None and decoder.external_data is not None
    table = 384 * (36 + 4)  # a byte for each number, and a scale for each word
    assert decoder.quantization.table_bytes == table
    caches = (28 + 6) * 2 * 2 * 30 * 4
    assert cost.stages["decode"].bytes == decoder.external_data.size - table + caches
    assert cost.stages["prefill"].integer and cost.stages["decode"].integer
