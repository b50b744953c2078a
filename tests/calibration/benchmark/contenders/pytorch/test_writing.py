"""PyTorch as a contender of BLIPs that write: the tokens of `generate()`, which no end token ends."""

from __future__ import annotations

from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_reports import RATES
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.pytorch.writing import BlipAnswers
from catp.calibration.benchmark.contenders.subject import Case, TimedInput, make_picture
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.verification.reference import Reference
from catp.runtime.bundle.chains import LanguageKind

KINDS: dict[str, LanguageKind] = {"vqa": "question-answering", "caption": "captioning"}
TEXTS = ("is there a red circle in the top left?", "a blue", "how many green squares are there?")


@pytest.mark.parametrize("name", KINDS)
def test_its_tokens_are_those_of_the_model(name: str, request: pytest.FixtureRequest) -> None:
    checkpoint = str(request.getfixturevalue(f"{name}_checkpoint"))
    reference = Reference(load_checkpoint(checkpoint))
    contender = BlipAnswers("transformers", checkpoint, 1, KINDS[name])
    rng = np.random.default_rng(3)
    images = [make_picture(rng) for _ in range(3)]
    goes_on, different = 0, set()
    for text in TEXTS:
        ids = reference.tokenize(text)
        found = contender.run(TimedInput(images, ids, 12), Case(2, "transformers", 0.0))
        again = contender.run(TimedInput(images, ids, 12), Case(2, "transformers", 0.0))
        assert found.token_ids == again.token_ids and [len(row) for row in found.token_ids] == [12, 12]
        for image, row in zip(images, found.token_ids):
            wanted = reference.answer(reference.pixel_values([image]), ids, 12).token_ids
            assert row[: len(wanted)] == wanted
            goes_on += len(wanted) < 12
            different.add(tuple(row))
        parts = ("preprocess", "vision", "prefill", "host")
        whole = sum(found.milliseconds[part] for part in parts) + 11 * found.milliseconds["decode"]
        assert whole == pytest.approx(found.milliseconds["total"])
        assert 0 < found.milliseconds["time_to_first_token"] < found.milliseconds["total"]
    assert goes_on and len(different) > 1


@pytest.mark.parametrize("name", KINDS)
def test_compiled_parts_say_the_same(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, calls = str(request.getfixturevalue(f"{name}_checkpoint")), []

    def compile(function: Any) -> Any:
        @wraps(function)  # as torch.compile does: `generate()` looks at the signature
        def run(*args: Any, **kwargs: Any) -> Any:
            calls.append(function)
            return function(*args, **kwargs)

        return run

    given = TimedInput([make_picture(np.random.default_rng(3))], [2, 10, 11, 3], 4)
    plain = BlipAnswers("transformers", checkpoint, 1, KINDS[name]).run(given, Case(1, "transformers", 0.0))
    monkeypatch.setattr("catp.calibration.benchmark.contenders.pytorch.loading.check_compiler", lambda name: None)
    monkeypatch.setattr(torch, "compile", compile)
    compiled = BlipAnswers("compile", checkpoint, 1, KINDS[name], compiled=True)
    assert compiled.run(given, Case(1, "compile", 0.0)).token_ids == plain.token_ids
    assert len(set(calls)) == (3 if name == "vqa" else 2)


@pytest.mark.heavy  # exports bundles, and times them
@pytest.mark.parametrize("name", KINDS)
def test_it_is_timed_beside_a_bundle(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    bundle, checkpoint = (Path(request.getfixturevalue(f"{name}_{what}")) for what in ("bundle", "checkpoint"))
    arguments = ["--checkpoint", str(checkpoint), "--against", "transformers,transformers-bf16", "--batch", "1,2"]
    quick = ["--iterations", "6", "--warmup", "0", "--threads", "1", "--prompt-tokens", "6", "--json"]
    result = CliRunner().invoke(app, ["run", str(bundle), *arguments, *quick])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    for batch in (1, 2):
        theirs = report.result(Case(batch, "transformers", 0.0))
        assert theirs.agreeing_tokens == 10 and theirs.repeatable
        (speedup,) = [s for s in report.speedups if (s.batch, s.baseline) == (batch, "transformers")]
        assert set(speedup.by_stage) >= {"vision", "prefill", "decode", "total"}
        assert speedup.by_stage["total"].interval_95 is not None
