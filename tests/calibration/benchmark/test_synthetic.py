"""Bundles of true sizes with random weights."""

from pathlib import Path

import pytest
import torch
from benchmark_reports import RATES
from transformers import AutoTokenizer, Blip2ForConditionalGeneration
from typer.testing import CliRunner

from catp.calibration.benchmark import synthetic
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.benchmark.synthetic import Inside, Sizes, Tower, check_room
from catp.calibration.commands.bench import app
from catp.export.demo import CHECKPOINT, vqa
from catp.runtime.errors import CatpError

RUNNER = CliRunner()


@pytest.mark.heavy  # exports and times a model of its own
def test_tiny_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made, exported with its parity checks, kept, and timed against transformers on the same weights."""
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    keep = tmp_path / "kept"
    arguments = ["--ratios", "0,0.5", "--batch", "1", "--iterations", "1", "--warmup", "0", "--threads", "1"]
    result = RUNNER.invoke(
        app, ["run", "--synthetic", "tiny", "--keep", str(keep), "--against", "transformers", *arguments, "--json"]
    )
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    assert report.bundle.random_weights and report.bundle.model.id == "synthetic-tiny"
    assert any("the weights of synthetic-tiny are random" in note for note in report.notes)
    assert "Cost of synthetic-tiny, random weights" in result.stderr
    theirs = report.results[-1]
    assert (theirs.subject, theirs.agreeing_tokens) == ("transformers", 10)
    # What was kept is an ordinary bundle and an ordinary checkpoint, and still says that its weights are random.
    again = RUNNER.invoke(
        app, ["run", str(keep / "bundle"), "--checkpoint", str(keep / "synthetic-tiny"), *arguments, "--json"]
    )
    assert BenchmarkReport.model_validate_json(again.stdout).bundle.random_weights
    refused = RUNNER.invoke(app, ["run", "--synthetic", "tiny", "--keep", str(keep)])
    assert refused.exit_code == 2
    assert f"catp-bench run {keep}/bundle --checkpoint {keep}/synthetic-tiny" in refused.stderr


@pytest.mark.heavy  # exports a model of its own twice
def test_an_encoder_that_prunes_is_timed_beside_the_dense_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    keep = tmp_path / "kept"
    asked = ["run", "--synthetic", "tiny", "--keep", str(keep), "--encoder-pruning", "cls", "--ratios", "0,0.5"]
    quick = ["--batch", "1", "--iterations", "1", "--warmup", "0", "--threads", "1", "--json"]
    # A share that this rule can't leave is refused before anything is made, so that the folder is still free.
    refused = RUNNER.invoke(app, [*asked, "--encoder-flops", "0.5,0.1", *quick])
    assert refused.exit_code == 2 and "encoder flops 0.1: pruning in layers" in refused.stderr
    result = RUNNER.invoke(app, [*asked, "--encoder-flops", "0.5,0.4", *quick])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    settings = [(found.subject, found.encoder_flops, found.ratio) for found in report.results]
    assert settings == [
        *(("catp", share, ratio) for share in (0.5, 0.4) for ratio in (0, 0.5)),
        ("dense", None, 0),
        ("dense", None, 0.5),
    ]
    assert report.bundle.encoder == "cls, schedule" and Path(report.bundle.path) == keep / "pruned"
    again = RUNNER.invoke(app, [*asked, "--encoder-flops", "0.5", *quick])
    assert again.exit_code == 2
    assert f"catp-bench run {keep}/pruned --dense {keep}/bundle --checkpoint {keep}/synthetic-tiny" in again.stderr


@pytest.mark.heavy  # exports a model of its own twice
def test_a_caption_model_is_timed_without_query_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    small = Tower(2, 64, 4, 96)
    sizes = synthetic.BlipSizes("BlipForConditionalGeneration", small, small, vocabulary=90, side=48, patch=8)
    monkeypatch.setitem(synthetic.BLIP, "blip-caption", sizes)
    synthetic._make("blip-caption", made := synthetic._folders(tmp_path, "blip-caption", True), Inside("norm", (0.7,)))
    assert made.pruned is not None
    arguments = ["--dense", str(made.bundle), "--encoder-flops", "0.7", "--batch", "2", "--iterations", "1"]
    result = RUNNER.invoke(app, ["run", str(made.pruned), *arguments, "--warmup", "0", "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    assert report.bundle.random_weights and report.bundle.model.id == "synthetic-blip-caption"
    assert [(found.subject, found.ratio) for found in report.results] == [("catp", 0), ("dense", 0)]
    timed = set(report.results[0].samples_ms)
    assert timed >= {"vision", "prefill", "decode"} and "qformer" not in timed
    (ours,), (theirs,) = report.costs, report.bundle_costs["dense"]
    for stage in ("vision", "prefill", "decode"):  # each reads fewer image tokens
        assert ours.stages[stage].flops < theirs.stages[stage].flops


@pytest.mark.parametrize(
    ("name", "millions"),
    [("tiny", 2), ("mid", 311), ("blip2-opt-2.7b", 3745), ("blip2-flan-t5-xl", 3942), ("blip-caption", 224)],
)
def test_sizes_are_those_of_the_models(name: synthetic.Preset, millions: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(vqa.CHECKPOINT if name in synthetic.BLIP else CHECKPOINT)
    model = synthetic._weightless(synthetic._config(name, tokenizer))
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_flan_t5_is_drawn_whole_with_a_head_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Tower(2, 32, 4, 48)
    monkeypatch.setitem(synthetic.SIZES, "small", Sizes(small, small, small, vocabulary=392, flan_t5=True))
    config = synthetic._config("small", AutoTokenizer.from_pretrained(CHECKPOINT))  # type: ignore[arg-type]
    drawn = [item for piece in synthetic._drawn(synthetic._weightless(config)) for item in piece.items()]
    weights = dict(drawn)
    assert len(drawn) == len(weights)  # each once
    model = Blip2ForConditionalGeneration(config)
    tied = {f"language_model.{part}.embed_tokens.weight" for part in ("encoder", "decoder")}
    assert set(weights) == set(model.state_dict()) - tied
    head, table = weights["language_model.lm_head.weight"], weights["language_model.shared.weight"]
    assert head.shape == table.shape and not torch.equal(head, table)
    for name, tensor in weights.items():
        assert tensor.isfinite().all(), name
        assert tensor.ndim == 1 or "class_embedding" in name or tensor.std() > 0.01, name


def test_room_is_looked_for_before_it_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room("mid", 1, tmp_path, again=1)
    monkeypatch.setattr(synthetic, "available_memory", lambda: 16 * 10**9)
    with pytest.raises(CatpError, match=r"3,700 million parameters need about 16.3 GB of memory, and 16.0 GB are free"):
        check_room("blip2-opt-2.7b", 3_700_000_000, tmp_path)
    with pytest.raises(CatpError, match=r"100 million parameters need about 0.7 GB of memory, and 0.6 GB are free"):
        monkeypatch.setattr(synthetic, "available_memory", lambda: 6 * 10**8)
        check_room("mid", 100_000_000, tmp_path)
        check_room("mid", 100_000_000, tmp_path, again=60_000_000)
    monkeypatch.setattr(synthetic, "available_memory", lambda: None)  # as on systems that don't say
    with pytest.raises(CatpError, match=r"GB of disk in .*, and .* GB are free"):
        check_room("large", 10**15, tmp_path)


def test_towers_validate_themselves() -> None:
    with pytest.raises(ValueError, match="10 heads can't share it"):
        Tower(1, 64, 10, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--synthetic tiny"),
        (
            ["--synthetic", "huge"],
            "'huge' is not one of 'tiny', 'mid', 'blip2-opt-2.7b', 'blip2-flan-t5-xl', 'blip-caption'",
        ),
        (["--synthetic", "tiny", "--checkpoint", "x"], "--checkpoint x and --synthetic tiny"),
        (["--synthetic", "tiny", "--keep", "/dev/null/x"], "no folder can be made there"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["run", *arguments])
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
