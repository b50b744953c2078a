"""Plans of encoders that prune: real TensorRT-RTX builds, which need no GPU and were executed on none."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app as calibrate_app
from catp.export.commands.build import app
from catp.export.demo.vqa import CHECKPOINT
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime.bundle.engine_sets import EngineSet, open_set, set_folders
from catp.runtime.bundle.folder import open_bundle

pytestmark = pytest.mark.heavy

pytest.importorskip("tensorrt_rtx")
RUNNER = CliRunner()
GRAPHS = ["vision_encoder", "question_encoder", "answer_decoder"]
BLIP2 = ["vision_encoder", "qformer_voting", "language_model"]


def build(source: Path, folder: Path, *arguments: str, graphs: Sequence[str] = GRAPHS) -> EngineSet:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("engines"), copy_function=shutil.copy)
    target = ["--target", "tensorrt-rtx", "--compute-capability", "8.6"]
    result = RUNNER.invoke(app, [str(folder), *target, *arguments, "--json"])
    assert result.exit_code == 0, result.output
    assert sorted(json.loads(result.stdout.splitlines()[-1])["built"]) == sorted(graphs)
    bundle = open_bundle(folder)
    engines = open_set(bundle, set_folders(bundle)[0])
    for graph in graphs:
        assert engines.plan(graph).read_bytes()[:4] == b"vtrt"
    return engines


def test_a_schedule_is_an_input(pruned_bundle: Path, tmp_path: Path) -> None:
    spec = open_bundle(pruned_bundle).manifest.encoder_pruning
    assert spec is not None
    plan = build(pruned_bundle, tmp_path / "bundle").plans["vision_encoder"]
    (profile,) = plan.request.profiles
    least, most = spec.bounds()
    counts = profile.values["kept_tokens"]
    assert (counts.min, counts.opt, counts.max) == (least, spec.kept_tokens, most)
    assert "kept_tokens" in {tensor.name for tensor in plan.inputs}


def test_a_schedule_is_baked_in(pruned_bundle: Path, tmp_path: Path) -> None:
    spec = open_bundle(pruned_bundle).manifest.encoder_pruning
    assert spec is not None and spec.kept_tokens is not None
    engines = build(pruned_bundle, tmp_path / "bundle", "--fixed-schedule")
    plan = engines.plans["vision_encoder"]
    assert [tensor.name for tensor in plan.inputs] == ["pixel_values"]
    tokens = spec.kept_tokens[-1] + spec.added + 1
    shapes = {tensor.name: tensor.shape for tensor in plan.outputs}
    assert shapes["image_embeds"][1] == tokens and shapes["kept_positions"][1] == tokens - 1
    assert shapes["positions.0"][1] == spec.kept_tokens[0] + spec.added  # its diagnostics
    (profile,) = engines.plans["question_encoder"].request.profiles
    shape = profile.shapes["image_embeds"]
    assert shape.min[1] == shape.opt[1] == shape.max[1] == tokens


def test_a_vote_reads_what_the_encoder_leaves(twice_pruned_bundle: Path, tmp_path: Path) -> None:
    """The Q-Former of a bundle with both prunings takes every number of image tokens that a schedule can leave."""
    spec = open_bundle(twice_pruned_bundle).manifest.encoder_pruning
    assert spec is not None and spec.kept_tokens is not None
    (least, *_), (most, *_) = (ends[-1:] for ends in spec.bounds())
    engines = build(twice_pruned_bundle, tmp_path / "bundle", graphs=BLIP2)
    (profile,) = engines.plans["qformer_voting"].request.profiles
    shape = profile.shapes["image_embeds"]
    assert [found[1] for found in (shape.min, shape.opt, shape.max)] == [1 + least, 1 + spec.kept_tokens[-1], 1 + most]
    assert profile.values["num_kept"].max == (32,)
    fixed = build(twice_pruned_bundle, tmp_path / "fixed", "--fixed-schedule", "--fixed-ratio", graphs=BLIP2)
    (profile,) = fixed.plans["qformer_voting"].request.profiles
    shape = profile.shapes["image_embeds"]
    assert shape.min[1] == shape.opt[1] == shape.max[1] == 1 + spec.kept_tokens[-1]
    assert not profile.values


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("arguments", [[], ["--fixed-schedule"]], ids=["schedule as input", "baked in"])
def test_lower_precisions(precision: str, arguments: list[str], lower: dict[str, Path], tmp_path: Path) -> None:
    plan = build(lower[precision], tmp_path / "bundle", *arguments).plans["vision_encoder"]
    if precision == "int8":
        assert plan.layers["DEQUANTIZE"] > 0
    assert ("kept_tokens" in {tensor.name for tensor in plan.inputs}) == (not arguments)


@pytest.fixture(scope="module")
def lower(pruned_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same encoder in other precisions."""
    folder = tmp_path_factory.mktemp("lower")
    options = EncoderOptions(flops=0.6, layers="0,2,4")
    export_bundle(str(CHECKPOINT), folder / "fp16", encoder=options, precision="fp16")
    words = "--to int8 --for tensorrt --samples 16 --questions 60 --data easy-vqa --max-accuracy-drop 0.5"
    result = RUNNER.invoke(calibrate_app, ["precision", str(pruned_bundle), *words.split(), "-o", str(folder / "int8")])
    assert result.exit_code == 0, result.output
    return {name: folder / name for name in ("fp16", "int8")}


def test_encoders_that_count_for_themselves(dynamic_bundle: Path, fully_pruned_bundle: Path, tmp_path: Path) -> None:
    """Where TensorRT finds a float input behind a count of tokens, it builds nothing."""
    plan = build(dynamic_bundle, tmp_path / "dynamic", "--dynamic-encoder").plans["vision_encoder"]
    assert {"encoder_temperature", "pixel_values"} == {tensor.name for tensor in plan.inputs}
    plan = build(fully_pruned_bundle, tmp_path / "fractions", "--dynamic-encoder").plans["question_encoder"]
    assert "encoded_lengths" in {tensor.name for tensor in plan.outputs}


@pytest.mark.parametrize(
    ("bundle", "arguments", "message"),
    [
        ("dynamic_bundle", [], "count tokens for themselves (dynamic form), which TensorRT builds and nobody"),
        ("dynamic_bundle", ["--dynamic-encoder", "--fixed-schedule"], "has no schedule"),
        ("pruned_bundle", ["--dynamic-encoder"], "no encoder of this bundle counts tokens for itself"),
        ("demo_bundle", ["--fixed-schedule"], "has no schedule; leave it out, or export with --encoder-flops"),
    ],
)
def test_what_can_not_be_built_so(
    bundle: str, arguments: list[str], message: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(bundle)
    result = RUNNER.invoke(app, [str(folder), "--target", "tensorrt-rtx", "--compute-capability", "8.6", *arguments])
    assert result.exit_code == 2 and message in " ".join(result.stderr.split())
