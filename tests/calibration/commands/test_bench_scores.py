"""catp-bench of bundles that score texts, as a user calls it. No test asserts how long anything takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from benchmark_reports import RATES
from PIL import Image
from typer.testing import CliRunner, Result

from catp.calibration.benchmark.contenders.scoring import make_scored_input
from catp.calibration.benchmark.contenders.subject import OURS, Case, TimedInput
from catp.calibration.benchmark.costs.geometry import read_geometry
from catp.calibration.benchmark.results.report import BenchmarkReport, read_report
from catp.calibration.commands.bench import app
from catp.runtime import EncoderWish, Pipeline
from catp.runtime.bundle.folder import open_bundle

pytestmark = pytest.mark.heavy  # each exports a bundle of its own, and times it

RUNNER = CliRunner()
QUICK = ("--iterations", "6", "--warmup", "0", "--threads", "1")


def call(*arguments: object) -> Result:
    return RUNNER.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)


def timed(bundle: Path, *arguments: object) -> tuple[BenchmarkReport, str]:
    result = call(bundle, *QUICK, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return BenchmarkReport.model_validate_json(result.stdout), result.stderr


def asked(bundle: Path, report: BenchmarkReport) -> TimedInput:
    setup, opened = report.setup, open_bundle(bundle)
    assert setup.texts is not None
    vocabulary = read_geometry(opened).language.vocabulary
    return make_scored_input(opened, vocabulary, max(setup.batches), setup.prompt_tokens, setup.texts, setup.seed)


def check_stages(report: BenchmarkReport, stages: set[str]) -> None:
    """Those stages, host and preprocessing are the whole, in every round."""
    for found in report.results:
        parts = {"preprocess", *stages, "host"}
        assert set(found.samples_ms) == {*parts, "total"} and set(found.roofline) == stages
        assert {len(values) for values in found.samples_ms.values()} == {6}
        for i, total in enumerate(found.samples_ms["total"]):
            assert sum(found.samples_ms[stage][i] for stage in parts) == pytest.approx(total, abs=0.01)
        assert found.repeatable and not found.token_ids and found.tokens_per_second is None


def test_statements_about_two_pictures(nlvr_bundle: Path, tmp_path: Path) -> None:
    output, plot = tmp_path / "report.json", tmp_path / "latency.png"
    report, printed = timed(nlvr_bundle, "--batch", "1,2", "-o", output, "--plot", plot)
    check_stages(report, {"vision", "text"})
    given, pipeline = asked(nlvr_bundle, report), Pipeline.load(nlvr_bundle)
    assert len(given.images) == 4 and report.setup.pictures == 2 and report.setup.new_tokens == 0
    pixels = pipeline.preprocess(given.images)
    verdicts = pipeline.judge_pixels(pixels, [given.prompt_ids] * 2, [0, 1])
    two = report.result(Case(2, OURS, 0.0))
    assert two.scores == [[pytest.approx(verdict.probability_of_true, abs=1e-5)] for verdict in verdicts]
    assert two.images_per_second == pytest.approx(4e3 / two.milliseconds["total"].p50)
    heading = next(line for line in printed.splitlines() if "matching head" in line or "text encoder" in line)
    for word in ("ratio", "qformer", "decode", "tokens/s", "first token"):
        assert word not in heading
    assert "of a request: pictures 2, texts 1" in printed and "key-value" not in printed
    with Image.open(plot) as picture:
        assert picture.format == "PNG"
    clean = call("compare", output, output, "--json")
    assert clean.exit_code == 0, clean.output
    assert {change["stage"] for change in json.loads(clean.stdout)["changes"]} >= {"vision", "text", "total"}
    assert "ratio" not in clean.stderr
    other = tmp_path / "other.json"
    other.write_text(read_report(output).model_copy(update={"setup": report.setup.model_copy(update={"texts": 2})})
                     .model_dump_json())  # fmt: skip
    refused = call("compare", output, other)
    assert refused.exit_code == 2 and "reports differ in texts: 1 and 2" in refused.stderr


def test_pictures_with_texts_of_their_own(blip_retrieval_bundle: Path) -> None:
    report, _ = timed(blip_retrieval_bundle, "--batch", "2", "--texts", "3")
    check_stages(report, {"vision", "image", "text", "match"})
    given, pipeline = asked(blip_retrieval_bundle, report), Pipeline.load(blip_retrieval_bundle)
    assert len(given.texts) == 3 and {len(text) for text in given.texts} == {16}
    (found,) = report.results
    for image, scores in zip(given.images, found.scores):
        matches = pipeline.match_pixels(pipeline.preprocess([image]), given.texts)
        expected = [*(match.probability for match in matches), *(match.similarity for match in matches)]
        assert scores == pytest.approx(expected, abs=1e-5)


def test_pictures_among_classes(clip_bundle: Path) -> None:
    report, _ = timed(clip_bundle, "--batch", "2")
    check_stages(report, {"vision", "image", "text"})
    assert report.setup.texts == 10
    (found,) = report.results
    scores = np.array(found.scores)
    assert scores.shape == (2, 10) and np.allclose(scores.sum(1), 1)
    given, pipeline = asked(clip_bundle, report), Pipeline.load(clip_bundle)
    vectors = pipeline.matching.embed([list(text) for text in given.texts])
    cosines = pipeline.embed_images(given.images)[:, 0] @ vectors.T
    scale = pipeline.manifest.logit_scale
    assert scale is not None
    powers = np.exp(scale * cosines.astype(np.float64))
    assert scores == pytest.approx(powers / powers.sum(1, keepdims=True), abs=1e-4)


def test_query_tokens_are_left_out_at_every_ratio(retrieval_bundle: Path) -> None:
    report, printed = timed(retrieval_bundle, "--batch", "1", "--ratios", "0,0.5")
    check_stages(report, {"vision", "qformer", "text", "match"})
    assert [(found.ratio, found.num_kept) for found in report.results] == [(0, 24), (0.5, 12)]
    given, pipeline = asked(retrieval_bundle, report), Pipeline.load(retrieval_bundle)
    for found in report.results:
        (match,) = pipeline.match_pixels(pipeline.preprocess(given.images), given.texts, found.ratio)
        assert found.scores == [[pytest.approx(match.probability, abs=1e-5), pytest.approx(match.similarity, abs=1e-5)]]
    assert report.break_even is None and any("this bundle scores texts" in note for note in report.notes)
    assert "Pruned over unpruned" in printed and "cache" not in printed


def test_an_encoder_that_prunes_beside_a_dense_one(pruned_clip_bundle: Path, clip_bundle: Path) -> None:
    shares = ("--dense", clip_bundle, "--encoder-flops", "0.7,0.6", "--batch", "1", "--texts", "2")
    report, printed = timed(pruned_clip_bundle, *shares)
    check_stages(report, {"vision", "image", "text"})
    cases = [Case(1, OURS, 0.0, 0.7), Case(1, OURS, 0.0, 0.6), Case(1, "dense", 0.0)]
    assert [found.case for found in report.results] == cases
    assert {(speedup.case, speedup.against) for speedup in report.speedups} == {(case, cases[2]) for case in cases[:2]}
    given, pipeline = asked(clip_bundle, report), Pipeline.load(pruned_clip_bundle)
    vectors = pipeline.embed_images(given.images, encoder=EncoderWish(flops=0.6))[:, 0]
    cosines = vectors @ pipeline.matching.embed([list(text) for text in given.texts]).T
    first, second = report.result(cases[1]).scores[0]
    scale = pipeline.manifest.logit_scale
    assert scale is not None and np.log(first / second) == pytest.approx(
        scale * float(cosines[0, 0] - cosines[0, 1]), abs=1e-3
    )
    assert "Encoder that prunes over" in printed and "dense, ratio" not in printed


def test_scores_are_compared_with_those_of_other_bundles(clip_bundle: Path, pruned_clip_bundle: Path) -> None:
    """The same graphs give the same; an encoder that prunes by itself is compared with none."""
    report, _ = timed(clip_bundle, "--batch", "1", "--against", pruned_clip_bundle)
    assert [found.score_difference for found in report.results] == [None, None]
    assert report.results[1].agreeing_tokens is None


@pytest.mark.parametrize(
    ("bundle", "arguments", "message"),
    [
        ("nlvr_bundle", "--new-tokens 4", "--new-tokens 4: the bundle is BLIP for statements about two images, which"),
        ("clip_bundle", "--positions compact", "--positions compact: the bundle is CLIP, which scores texts"),
        ("nlvr_bundle", "--texts 2", "which judges one statement about two pictures; leave it out"),
        ("demo_bundle", "--texts 2", "which writes text; leave it out"),
        ("clip_bundle", "--ratios 0.5", "which has no query tokens to leave out; leave --ratios out"),
        ("clip_bundle", "--kernels", "which generates no text; accepted: what answers in words"),
        ("clip_bundle", "--prompt-tokens 2", "2 prompt tokens: 2 frame a text of this model; give more"),
        ("clip_bundle", "--prompt-tokens 78", "78 prompt tokens: this model's text encoder takes 77; give fewer"),
        ("clip_bundle", "--against {nlvr_bundle}", "its kind of language model is two-images, that of"),
        ("instructblip_bundle", "--prompt-tokens 2", "2 prompt tokens: 2 frame a prompt of the Q-Former; give more"),
    ],
)
def test_what_makes_no_sense_is_refused(
    bundle: str, arguments: str, message: str, request: pytest.FixtureRequest
) -> None:
    named = {"nlvr_bundle": request.getfixturevalue("nlvr_bundle")} if "{" in arguments else {}
    result = call(request.getfixturevalue(bundle), *arguments.format(**named).split())
    assert result.exit_code == 2, result.output
    line = result.stderr.splitlines()[-1]
    assert line.startswith("error: ") and message in line and not result.stdout
