"""catp-bench of models whose Q-Former reads the prompt: InstructBLIP, on images and on videos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from benchmark_reports import RATES
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.bundle_subject import BundleSubject, make_asked_input
from catp.calibration.benchmark.contenders.subject import Case, TimedInput
from catp.calibration.benchmark.costs.geometry import read_geometry
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.commands.bench import app
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.verification.reference import Instructions, Reference
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.errors import UsageError
from catp.runtime.providers import open_provider

pytestmark = pytest.mark.heavy

RUNNER = CliRunner()


def timed(bundle: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> BenchmarkReport:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    few = ["--ratios", "0.5", "--batch", "1,2", "--iterations", "2", "--warmup", "0", "--threads", "1", "--json"]
    result = RUNNER.invoke(app, [str(bundle), *few, *more])
    assert result.exit_code == 0, result.output
    return BenchmarkReport.model_validate_json(result.stdout)


def test_the_same_prompt_as_hugging_face_gives_its_tokens(
    instructblip_bundle: Path, instructblip_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    against = ["--against", "transformers", "--checkpoint", str(instructblip_checkpoint)]
    report = timed(instructblip_bundle, monkeypatch, *against)
    rows = [("catp", 0.0, 24), ("catp", 0.5, 12), ("transformers", 0.0, 24)]
    assert [(r.batch, r.subject, r.ratio, r.num_kept) for r in report.results] == [
        (batch, *row) for batch in (1, 2) for row in rows
    ]
    # The same weights, pictures, prompt, and the same words for the Q-Former.
    assert [r.agreeing_tokens for r in report.results if r.subject == "transformers"] == [10, 10]
    for found in report.results:
        assert [len(row) for row in found.token_ids] == [10] * found.batch
        assert all(min(found.samples_ms[stage]) > 0 for stage in ("vision", "qformer", "prefill", "decode"))
    assert report.break_even is not None and [payoff.batch for payoff in report.break_even.payoffs] == [1, 2]
    assert report.cost(1, 0.5).stages["qformer"].flops < report.cost(1, 0.0).stages["qformer"].flops


def test_other_words_give_other_tokens(instructblip_bundle: Path) -> None:
    """Or else what a Q-Former is given would not matter above."""
    bundle = open_bundle(instructblip_bundle)
    geometry = read_geometry(bundle)
    asked = [make_asked_input(bundle, geometry, 1, 16, 10, seed) for seed in (0, 1)]
    other = TimedInput(asked[0].images, asked[0].prompt_ids, 10, instruction_ids=asked[1].instruction_ids)
    subject = BundleSubject(bundle, open_provider("cpu", 1))
    case = Case(1, "catp", 0.5)
    assert subject.run(asked[0], case).token_ids != subject.run(other, case).token_ids
    assert len(asked[0].instruction_ids) == 16 and asked[0].instruction_ids[::15] == (2, 3)  # [CLS] and [SEP]


def test_a_prompt_longer_than_the_q_former_takes(instructblip_bundle: Path) -> None:
    bundle = open_bundle(instructblip_bundle)
    text = bundle.manifest.text.model_copy(update={"max_instruction": 15})
    bundle = type(bundle)(bundle.path, bundle.manifest.model_copy(update={"text": text}))
    with pytest.raises(UsageError, match="16 prompt tokens: this model's Q-Former takes 15; give fewer"):
        make_asked_input(bundle, read_geometry(bundle), 1, 16, 10, 0)


def test_videos_have_the_tokens_of_hugging_face(
    video_bundle: Path, video_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = timed(video_bundle, monkeypatch)
    assert report.setup.pictures == 4
    assert [(r.batch, r.ratio, r.num_kept) for r in report.results] == [
        (batch, *row) for batch in (1, 2) for row in ((0.0, 96), (0.5, 48))
    ]
    bundle = open_bundle(video_bundle)
    asked = make_asked_input(bundle, read_geometry(bundle), 2, 16, 10, 0)
    reference = Reference(load_checkpoint(str(video_checkpoint)))
    words = torch.tensor([asked.instruction_ids])
    rows = report.results[2].token_ids
    for row, tokens in enumerate(rows):
        frames = torch.cat([reference.pixel_values([frame]) for frame in asked.images[4 * row : 4 * row + 4]])
        instructions = Instructions(words, torch.ones_like(words))
        found = reference.generate(frames, asked.prompt_ids, 10, instructions).token_ids
        assert found == tokens[: len(found)]  # an end token ends nothing in a benchmark
    assert rows[0] == report.results[0].token_ids[0] and rows[0] != rows[1]
    # Of four frames each: four times the work of vision encoder and Q-Former, and 96 tokens to read.
    one, two = report.cost(1, 0.0), report.cost(2, 0.0)
    geometry = read_geometry(bundle)
    dense = geometry.vision.tokens * geometry.vision.width * 4 * 4  # bytes of four frames' image tokens
    assert two.stages["vision"].flops == 2 * one.stages["vision"].flops
    assert two.stages["vision"].bytes - one.stages["vision"].bytes == dense + 4 * 3 * 56 * 56 * 4
    assert one.cache_bytes == (96 + 16 + 9) * 2 * 1 * 2 * 12 * 4
    assert report.break_even is not None
    assert report.break_even.largest_prompt == bundle.manifest.text.max_positions - 96 - 10 + 1
    assert np.isfinite([payoff.modelled_ms for payoff in report.break_even.payoffs]).all()
