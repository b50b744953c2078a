"""Bundles of true sizes with random weights."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from benchmark_reports import RATES
from documents import table
from transformers import Blip2ForConditionalGeneration
from typer.testing import CliRunner

from catp.calibration.benchmark.contenders.subject import make_picture
from catp.calibration.benchmark.results.report import BenchmarkReport
from catp.calibration.benchmark.synthetic import making, sizes
from catp.calibration.benchmark.synthetic.checkpoint import count, make_weightless, save_checkpoint
from catp.calibration.benchmark.synthetic.configurations import make_config, make_tokenizer
from catp.calibration.benchmark.synthetic.making import Inside, check_room
from catp.calibration.benchmark.synthetic.sizes import BlipSizes, ClipSizes, Preset, Sizes, Tower
from catp.calibration.benchmark.synthetic.weights import draw_weights
from catp.calibration.commands.bench import app
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.verification.reference import Reference
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
    asked = BlipSizes("BlipForConditionalGeneration", small, small, vocabulary=90, side=48, patch=8)
    monkeypatch.setitem(sizes.BLIP, "blip-caption", asked)
    making._make("blip-caption", made := making._folders(tmp_path, "blip-caption", True), Inside("norm", (0.7,)))
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


@pytest.mark.heavy  # exports a model of its own twice
def test_a_clip_is_timed_dense_and_pruned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that scores texts, at scaled-down sizes: both bundles in one run, of the same pictures and classes."""
    monkeypatch.setattr("catp.calibration.commands.bench.measure_rates", lambda threads: RATES)
    small = ClipSizes(Tower(3, 64, 4, 96), Tower(2, 32, 4, 48), vector=24, vocabulary=600, side=48, patch=8)
    monkeypatch.setitem(sizes.CLIP, "clip-b16", small)
    making._make("clip-b16", made := making._folders(tmp_path, "clip-b16", True), Inside("cls", (0.7, 0.8)))
    assert made.pruned is not None
    arguments = ["--dense", str(made.bundle), "--encoder-flops", "0.8,0.7", "--batch", "2", "--iterations", "1"]
    result = RUNNER.invoke(app, ["run", str(made.pruned), *arguments, "--warmup", "0", "--threads", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = BenchmarkReport.model_validate_json(result.stdout)
    assert report.bundle.random_weights and report.bundle.model.id == "synthetic-clip-b16"
    assert [(found.subject, found.encoder_flops) for found in report.results] == [
        ("catp", 0.8), ("catp", 0.7), ("dense", None),
    ]  # fmt: skip
    timed = set(report.results[0].samples_ms)
    assert timed >= {"vision", "image", "text"} and not timed & {"qformer", "prefill", "decode"}
    first, second, dense = report.results
    assert first.scores != dense.scores != second.scores and [len(row) for row in dense.scores] == [10, 10]


@pytest.mark.parametrize("name", ["blip-vqa", "blip-retrieval", "blip-nlvr2", "clip-b16"])
def test_a_checkpoint_is_whole_and_looks_at_its_pictures(
    name: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Tower(2, 64, 4, 96)
    if name in sizes.BLIP:
        blip = replace(sizes.BLIP[name], vision=small, text=small, vocabulary=90, side=48, patch=8)
        monkeypatch.setitem(sizes.BLIP, name, blip)
    else:
        monkeypatch.setitem(sizes.CLIP, name, ClipSizes(small, small, vector=24, vocabulary=600, side=48, patch=8))
    torch.manual_seed(0)
    save_checkpoint(name, folder := tmp_path / "made")
    loaded = load_checkpoint(str(folder))  # refuses one that lacks a weight
    if name == "clip-b16":
        assert loaded.family.logit_scale(loaded.model) == pytest.approx(100, abs=0.01)
    reference = Reference(loaded)
    rng = np.random.default_rng(0)
    pictures = [reference.pixel_values([make_picture(rng) for _ in range(1 + reference.judges)]) for _ in range(2)]
    texts = [reference.tokenize(text) for text in ("is there a red circle in the top left?", "a blue square")]
    answers = {
        "blip-vqa": lambda pixels, ids: reference.answer(pixels, ids, 3).logits,
        "blip-retrieval": lambda pixels, ids: np.array([reference.pair(pixels, ids).similarity]),
        "blip-nlvr2": reference.judge,
        "clip-b16": lambda pixels, ids: np.array([reference.pair(pixels, ids).similarity]),
    }
    found = [answers[name](pixels, ids) for pixels in pictures for ids in texts]  # type: ignore[operator]
    for place, one in enumerate(found):  # whatever the picture and whatever the text, they count
        assert np.isfinite(one).all()
        assert all(np.abs(one[0] - other[0]).max() > 0.003 for other in found[:place])


@pytest.mark.parametrize("name", get_args(Preset))
def test_sizes_are_those_of_the_models(name: Preset) -> None:
    """Their number of parameters is that of the published ones, which the document names."""
    rows = {row[0]: row[1:] for row in table("docs/benchmark.md", "sizes | model | images | million parameters")}
    config = make_config(name, make_tokenizer(name))
    model = make_weightless(config)
    assert rows[f"`{name}`"][1:] == [str(config.vision_config.image_size), str(round(count(model) / 1e6))]


def test_flan_t5_is_drawn_whole_with_a_head_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Tower(2, 32, 4, 48)
    monkeypatch.setitem(sizes.SIZES, "small", Sizes(small, small, small, vocabulary=392, flan_t5=True))
    config = make_config("small", make_tokenizer("tiny"))  # type: ignore[arg-type]
    drawn = [item for piece in draw_weights(make_weightless(config)) for item in piece.items()]
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
    monkeypatch.setattr(making, "available_memory", lambda: 16 * 10**9)
    with pytest.raises(CatpError, match=r"3,700 million parameters need about 16.3 GB of memory, and 16.0 GB are free"):
        check_room("blip2-opt-2.7b", 3_700_000_000, tmp_path)
    with pytest.raises(CatpError, match=r"100 million parameters need about 0.7 GB of memory, and 0.6 GB are free"):
        monkeypatch.setattr(making, "available_memory", lambda: 6 * 10**8)
        check_room("mid", 100_000_000, tmp_path)
        check_room("mid", 100_000_000, tmp_path, again=60_000_000)
    monkeypatch.setattr(making, "available_memory", lambda: None)  # as on systems that don't say
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
            "'huge' is not one of 'tiny', 'mid', 'blip2-opt-2.7b', 'blip2-flan-t5-xl', 'blip-caption', 'blip-vqa'",
        ),
        (["--synthetic", "tiny", "--checkpoint", "x"], "--checkpoint x and --synthetic tiny"),
        (["--synthetic", "tiny", "--keep", "/dev/null/x"], "no folder can be made there"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, ["run", *arguments])
    assert result.exit_code == 2 and message in result.stderr and len(result.stderr.splitlines()) == 1
