"""PyTorch as a contender of what scores texts: the scores of each model's own `forward`, in the order of a bundle's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_reports import RATES
from PIL import Image
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.pytorch.scoring import TextScores
from catp.calibration.benchmark.contenders.subject import Case, TimedInput, make_picture
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.verification.reference import Reference
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError
from catp.runtime.matching.base import probability_of_yes

RUNNER = CliRunner()
KINDS: dict[str, LanguageKind] = {
    "retrieval": "none", "blip_retrieval": "matching", "clip": "contrastive", "nlvr": "two-images",
}  # fmt: skip
STAGES = {
    "none": {"vision", "qformer", "text", "match"},
    "matching": {"vision", "image", "text", "match"},
    "contrastive": {"vision", "image", "text"},
    "two-images": {"vision", "text"},
}
TEXTS = ("is there a red circle in the top left?", "how many green squares are there?", "what is in the bottom right?")


def asked(reference: Reference, requests: int) -> TimedInput:
    rng = np.random.default_rng(7)
    texts = tuple(reference.tokenize(text) for text in TEXTS[2 if reference.judges else 0 :])
    length = min(map(len, texts))
    texts = tuple([*text[: length - 1], text[-1]] for text in texts)  # of equal length, as those that are timed
    return TimedInput([make_picture(rng) for _ in range((1 + reference.judges) * requests)], texts[0], 0, texts)


def expected(kind: LanguageKind, reference: Reference, images: list[Image.Image], texts: tuple[list[int], ...]) -> Any:
    """One request's scores by the model's own `forward`, a text at a time."""
    pixels = reference.pixel_values(images)
    if kind == "two-images":
        return probability_of_yes(reference.judge(pixels, texts[0])[None])
    if kind == "none":
        queries = range(reference._model.config.num_query_tokens)
        logits = np.stack([reference.match(pixels, text, queries) for text in texts])
        pairs = [reference.contrast(pixels, text) for text in texts]
        return np.concatenate([probability_of_yes(logits), [(seen @ text).max() for text, seen in pairs]])
    found = [reference.pair(pixels, text) for text in texts]
    if kind == "contrastive":
        powers = np.exp([pair.scaled or 0.0 for pair in found])
        return powers / powers.sum()
    logits = np.stack([pair.logits for pair in found if pair.logits is not None])
    return np.concatenate([probability_of_yes(logits), [pair.similarity for pair in found]])


@pytest.mark.parametrize("name", KINDS)
def test_its_scores_are_those_of_the_model(name: str, request: pytest.FixtureRequest) -> None:
    kind, checkpoint = KINDS[name], str(request.getfixturevalue(f"{name}_checkpoint"))
    reference = Reference(load_checkpoint(checkpoint))
    given = asked(reference, 3)
    contender = TextScores("transformers", checkpoint, 1, kind)
    found = contender.run(given, Case(2, "transformers", 0.0))  # not all requests that there are
    rows = [given.images[:4][place::2] if reference.judges else [given.images[place]] for place in range(2)]
    wanted = [expected(kind, reference, images, given.texts) for images in rows]
    assert np.abs(np.array(wanted[0]) - wanted[1]).max() > 1e-3  # pictures count
    assert np.array(found.scores) == pytest.approx(np.array(wanted), abs=1e-5)
    parts = {"preprocess", *STAGES[kind], "host"}
    assert set(found.milliseconds) == {*parts, "total"} and min(found.milliseconds[stage] for stage in STAGES[kind]) > 0
    assert sum(found.milliseconds[part] for part in parts) == pytest.approx(found.milliseconds["total"])


@pytest.mark.parametrize("name", KINDS)
def test_half_precision_and_compiled_parts_say_nearly_the_same(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler is left out: its graphs are its own affair, and take a minute."""
    kind, checkpoint = KINDS[name], str(request.getfixturevalue(f"{name}_checkpoint"))
    given = asked(Reference(load_checkpoint(checkpoint)), 1)
    case, calls = Case(1, "transformers", 0.0), []

    def compile(function: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            calls.append(function)
            return function(*args, **kwargs)

        return run

    plain = np.array(TextScores("transformers", checkpoint, 1, kind).run(given, case).scores)
    half = np.array(TextScores("transformers-bf16", checkpoint, 1, kind, "bfloat16").run(given, case).scores)
    assert half == pytest.approx(plain, abs=0.1) and (half != plain).any()
    monkeypatch.setattr("catp.calibration.benchmark.contenders.pytorch.loading.check_compiler", lambda name: None)
    monkeypatch.setattr(torch, "compile", compile)
    compiled = TextScores("compile", checkpoint, 1, kind, compiled=True).run(given, case)
    assert np.array(compiled.scores) == pytest.approx(plain, abs=1e-6)
    assert len(set(calls)) == 2  # the vision encoder, and what reads texts


def test_a_checkpoint_of_another_kind_is_refused(clip_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="it is CLIP, and the bundle is not; give the folder or Hub id"):
        TextScores("transformers", str(clip_checkpoint), 1, "matching")
    with pytest.raises(UsageError, match="transformers can't load it"):
        TextScores("transformers", str(tmp_path), 1, "matching")


@pytest.mark.heavy  # exports bundles, and times them
@pytest.mark.parametrize("name", KINDS)
def test_it_is_timed_beside_a_bundle(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    bundle, checkpoint = (request.getfixturevalue(f"{name}_{what}") for what in ("bundle", "checkpoint"))
    arguments = ["--checkpoint", str(checkpoint), "--against", "transformers", "--batch", "1,2", "--iterations", "6"]
    ratios = ["--ratios", "0,0.5"] if name == "retrieval" else []
    result = RUNNER.invoke(app, ["run", str(bundle), *arguments, *ratios, "--warmup", "0", "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    for batch in (1, 2):
        theirs = report.result(Case(batch, "transformers", 0.0))
        assert theirs.score_difference is not None and theirs.score_difference < 1e-4
        assert theirs.repeatable and set(theirs.samples_ms) == {"preprocess", *STAGES[KINDS[name]], "host", "total"}
    against = [speedup for speedup in report.speedups if speedup.baseline == "transformers"]
    assert {(speedup.batch, speedup.ratio) for speedup in against} == {
        (batch, ratio) for batch in (1, 2) for ratio in ((0, 0.5) if ratios else (0,))
    }
    for speedup in against:
        assert speedup.by_stage["total"].interval_95 is not None and {"vision", "text"} <= set(speedup.by_stage)
