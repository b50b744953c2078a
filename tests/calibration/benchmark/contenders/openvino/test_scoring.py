"""OpenVINO as a contender of what scores texts: the scores that PyTorch gives, of any number of texts and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_reports import RATES
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.pytorch.scoring import TextScores
from catp.calibration.benchmark.contenders.subject import Case, TimedInput, make_picture
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError

pytest.importorskip("openvino", reason="an extra of its own: pip install '.[openvino]'")
pytest.importorskip("nncf", reason="an extra of its own: pip install '.[nncf]'")
from catp.calibration.benchmark.contenders.openvino.scoring import OpenVinoScores

KINDS: dict[str, LanguageKind] = {
    "retrieval": "none", "blip_retrieval": "matching", "clip": "contrastive", "nlvr": "two-images",
}  # fmt: skip


def asked(kind: LanguageKind, end: int, tokens: int, texts: int) -> TimedInput:
    """Token ids that every one of the tokenizers has; those of a CLIP end in the token that it reads the text at."""
    rng = np.random.default_rng(tokens)
    found = tuple([2, *rng.integers(4, 40, tokens - 2).tolist(), end] for _ in range(texts))
    return TimedInput([make_picture(rng) for _ in range(6)], found[0], 0, found)


@pytest.mark.heavy  # converts models
@pytest.mark.parametrize("name", KINDS)
def test_its_scores_are_those_of_the_checkpoint(name: str, request: pytest.FixtureRequest) -> None:
    kind, checkpoint = KINDS[name], str(request.getfixturevalue(f"{name}_checkpoint"))
    theirs, ours = TextScores("transformers", checkpoint, 1, kind), OpenVinoScores("openvino", checkpoint, 1, kind)
    end = theirs._model.config.text_config.eos_token_id if kind == "contrastive" else 3
    for requests, tokens, texts in ((1, 5, 1), (3, 11, 1 if kind == "two-images" else 2)):
        given, case = asked(kind, end, tokens, texts), Case(requests, "openvino", 0.0)
        wanted, found = theirs.run(given, case), ours.run(given, case)
        assert np.array(found.scores) == pytest.approx(np.array(wanted.scores), abs=1e-4)
        assert set(found.milliseconds) == set(wanted.milliseconds) and min(found.milliseconds.values()) >= 0
        if requests > 1:
            assert np.ptp(np.array(found.scores), 0).max() > 1e-3  # pictures count


@pytest.mark.heavy  # quantises a model
def test_int8_is_another_computation_of_the_same(clip_checkpoint: Path) -> None:
    checkpoint, kind = str(clip_checkpoint), KINDS["clip"]
    contender = TextScores("transformers", checkpoint, 1, kind)
    given = asked(kind, contender._model.config.text_config.eos_token_id, 9, 3)
    case = Case(2, "openvino-int8", 0.0)
    wanted: Any = np.array(contender.run(given, case).scores)
    found: Any = np.array(OpenVinoScores("openvino-int8", checkpoint, 1, kind, int8=True).run(given, case).scores)
    assert found == pytest.approx(wanted, abs=0.2) and np.abs(found - wanted).max() > 1e-4


def test_a_checkpoint_of_another_kind_is_refused(clip_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match="it is CLIP, and the bundle is not; give the folder or Hub id"):
        OpenVinoScores("openvino", str(clip_checkpoint), 1, "matching")


@pytest.mark.heavy  # exports a bundle, and converts and quantises its model
def test_it_is_timed_beside_a_bundle(nlvr_bundle: Path, nlvr_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    arguments = ["--checkpoint", str(nlvr_checkpoint), "--against", "openvino,openvino-int8", "--batch", "2"]
    quick = ["--iterations", "6", "--warmup", "0", "--threads", "1", "--json"]
    result = CliRunner().invoke(app, ["run", str(nlvr_bundle), *arguments, *quick])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    exact, quantised = (report.result(Case(2, name, 0.0)) for name in ("openvino", "openvino-int8"))
    assert exact.score_difference is not None and exact.score_difference < 1e-4 and exact.repeatable
    assert quantised.score_difference != exact.score_difference
    assert {speedup.baseline for speedup in report.speedups} == {"openvino", "openvino-int8"}
