"""catp-export as a user calls it: what it publishes, and that it never publishes half of it or something wrong."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import onnx
import pytest
from typer.testing import CliRunner

from catp.export.commands.export import app, read_weights
from catp.export.demo import CHECKPOINT, samples, scenes
from catp.export.graphs import operators
from catp.export.graphs.vision_encoder import VisionEncoder
from catp.export.voting import METHODS
from catp.export.voting.catp import RankPoints
from catp.runtime import Pipeline, UsageError
from catp.runtime.bundle.chains import GRAPHS
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.bundle.manifest import Manifest, Method

RUNNER = CliRunner()
CODE = "from catp.export.commands.export import app; app()"


@pytest.mark.parametrize("ratio", ["1", "-0.25", "nan", "inf", "half"])
def test_what_is_no_ratio_exits_2(tmp_path: Path, ratio: str) -> None:
    result = RUNNER.invoke(app, ["--ratio", ratio, "-o", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert "ratio" in result.stderr and "Traceback" not in result.output
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "none", "--ratio", "0.5"], "keeps every token"),
        (["--method", "dice"], "catp"),
        (["--precision", "fp8"], "bf16"),
        (["--model", "."], "no config.json"),
    ],
)
def test_arguments_that_can_not_be_exit_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, [*arguments, "-o", "out"], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert message in result.stderr
    assert not any(tmp_path.iterdir())


def test_pixels_of_another_size_than_the_vision_encoder_takes_exit_2(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CHECKPOINT, tmp_path / "checkpoint"))
    for path in (folder / "preprocessor_config.json", folder / "processor_config.json"):
        path.write_text(path.read_text().replace("96", "64"))
    result = RUNNER.invoke(app, ["--model", str(folder), "-o", str(tmp_path / "out")])
    assert result.exit_code == 2 and "makes 64 x 64 pixels" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_methods_by_name() -> None:
    assert set(METHODS) == set(get_args(Method))


def test_a_taken_folder_exits_2_and_is_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    result = RUNNER.invoke(app, ["-o", str(tmp_path)])
    assert result.exit_code == 2 and "not empty" in result.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_the_bundle_is_what_the_design_says(demo_bundle: Path) -> None:
    manifest = Manifest.model_validate_json((demo_bundle / "catp.json").read_text())
    listed = {spec.path for spec in manifest.all_files()} | {"catp.json"}
    assert {path.name for path in demo_bundle.iterdir()} == listed
    assert {"config.json", "generation_config.json", "tokenizer.json", "preprocessor_config.json"} <= listed
    shapes = {name: {t.name: t.shape for t in [*g.inputs, *g.outputs]} for name, g in manifest.graphs.items()}
    assert shapes["vision_encoder"] == {"pixel_values": ("batch", 3, 96, 96), "image_embeds": ("batch", 37, 128)}
    assert shapes["qformer_voting"] == {
        "image_embeds": ("batch", 37, 128),
        "num_kept": (1,),
        "kept_indices": ("batch", "num_kept"),
        "kept_embeds": ("batch", "num_kept", 128),
        "token_scores": ("batch", 32),
    }
    language_model = shapes["language_model"]
    assert language_model["input_ids"] == ("batch", "seq")
    assert language_model["prefix_embeds"] == ("batch", "num_kept", 128)
    assert (
        language_model["past_key_values.1.value"] == language_model["present.1.value"] == ("batch", 4, "max_length", 32)
    )
    assert language_model["logits"] == ("batch", 384)
    for name in GRAPHS:
        onnx.checker.check_model(demo_bundle / f"{name}.onnx", full_check=True)


def test_the_tied_embedding_is_stored_once(demo_bundle: Path) -> None:
    model = onnx.load(demo_bundle / "language_model.onnx")
    tables = [t.name for t in model.graph.initializer if sorted(t.dims) == [128, 384] and "qkv" not in t.name]
    assert len(tables) == 1


def test_the_cache_is_scattered_and_nothing_grows(demo_bundle: Path) -> None:
    nodes = [n.op_type for n in onnx.load(demo_bundle / "language_model.onnx", load_external_data=False).graph.node]
    assert nodes.count("TensorScatter") == 4 and nodes.count("Attention") == 2


def test_half_precision_keeps_votes_in_float32(half_bundle: Path, demo_bundle: Path) -> None:
    manifest = open_bundle(half_bundle).manifest
    dtypes = {t.name: t.dtype for g in manifest.graphs.values() for t in [*g.inputs, *g.outputs]}
    assert dtypes["image_embeds"] == dtypes["kept_embeds"] == dtypes["present.0.key"] == "float16"
    assert dtypes["token_scores"] == dtypes["logits"] == dtypes["pixel_values"] == "float32"
    full, half = Pipeline.load(demo_bundle), Pipeline.load(half_bundle)
    size = sum(g.external_data.size for g in half.manifest.graphs.values() if g.external_data)
    assert size < 0.75 * sum(g.external_data.size for g in full.manifest.graphs.values() if g.external_data)
    images, prompts = [s.image for s in samples()], [s.prompt for s in samples()]
    for a, b in zip(half.generate(images, prompts), full.generate(images, prompts)):
        assert a.answer == b.answer
        assert len(set(a.kept_indices) & set(b.kept_indices)) >= 15


def test_bf16_weights_are_bf16_and_what_breaks_in_it_is_not(bf16_bundle: Path) -> None:
    manifest = open_bundle(bf16_bundle).manifest
    assert manifest.precision == "bf16"
    dtypes = {t.name: t.dtype for g in manifest.graphs.values() for t in [*g.inputs, *g.outputs]}
    assert dtypes["past_key_values.0.key"] == dtypes["present.1.value"] == "bfloat16"
    interface = ("pixel_values", "image_embeds", "kept_embeds", "prefix_embeds", "token_scores", "logits")
    assert {dtypes[name] for name in interface} == {"float32"}
    graphs = {name: onnx.load(bf16_bundle / f"{name}.onnx").graph for name in GRAPHS}
    for name in ("vision_encoder", "language_model"):
        weights = [t for t in graphs[name].initializer if t.data_type != onnx.TensorProto.INT64]
        assert weights and {t.data_type for t in weights} == {onnx.TensorProto.BFLOAT16}
    # Of the Q-Former graph, only the projection of kept tokens into the language model.
    matrices = [t for t in graphs["qformer_voting"].initializer if len(t.dims) > 1]
    assert sum(t.data_type == onnx.TensorProto.BFLOAT16 for t in matrices) == 1 < len(matrices)
    for graph in graphs.values():
        for node in graph.node:
            attributes = {a.name: a.i for a in node.attribute}
            if node.op_type == "LayerNormalization":
                assert attributes.get("stash_type", 1) == onnx.TensorProto.FLOAT
            if node.op_type == "Attention" and graph is not graphs["qformer_voting"]:
                assert attributes["softmax_precision"] == onnx.TensorProto.FLOAT


def test_bf16_checks_say_that_they_emulate(bf16_bundle: Path, half_bundle: Path) -> None:
    checks = open_bundle(bf16_bundle).manifest.parity
    ran_graphs = {c.subject for c in checks if c.subject not in ("tokenizer", "preprocessing")}
    emulated = {f"{subject} (bf16 emulated in float32)" for subject in (*GRAPHS, "pipeline")}
    assert ran_graphs == emulated
    # It errs as bfloat16 does: by more than float16, the emulation of which would be none.
    errors = {c.measure: c.value for c in open_bundle(half_bundle).manifest.parity}
    relative = [c for c in checks if "relative error" in c.measure]
    assert len(relative) == 3 and all(4 * errors[c.measure] < c.value < c.limit for c in relative)


@pytest.mark.heavy  # the same check as of fp32, through the emulation that its own tests cover
def test_a_wrong_bf16_graph_fails_its_emulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = VisionEncoder.forward
    monkeypatch.setattr(VisionEncoder, "forward", lambda self, pixel_values: forward(self, pixel_values) * 1.25)
    linear = operators.tied_linear
    monkeypatch.setattr(operators, "tied_linear", lambda *inputs: linear(*inputs) * 0.75)
    result = RUNNER.invoke(app, ["--precision", "bf16", "-o", str(tmp_path / "out")])
    assert result.exit_code == 1, result.output
    for graph, name in (("vision_encoder", "image_embeds"), ("language_model", "logits")):
        assert f"{graph} (bf16 emulated in float32): {name}: relative error is 0.25" in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.heavy  # one more export, of the largest vote
def test_options_reach_graphs_and_manifest(tmp_path: Path) -> None:
    options = [
        "--json",
        "--method",
        "coverage",
        "--image-weights",
        "attention",
        "--layers",
        "last",
        "--keep-mass",
        "0.8",
    ]
    result = RUNNER.invoke(app, [*options, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "keeps the query tokens with 80 % of each image's votes" in " ".join(result.stderr.split())
    pipeline = Pipeline.load(tmp_path / "out")
    printed = Manifest.model_validate({k: v for k, v in json.loads(result.stdout).items() if k != "bundle"})
    assert printed == pipeline.manifest
    pruning = pipeline.manifest.pruning
    assert pruning.options == {"image_weights": "attention", "layers": "last", "layer_weights": []}
    assert pruning.keep_mass == 0.8
    assert pipeline.manifest.graphs["vision_encoder"].outputs[1].name == "image_weights"
    # Only the layer that votes materialises its attention: the other three attend in one operator each.
    graph = onnx.load(tmp_path / "out" / "qformer_voting.onnx", load_external_data=False).graph
    assert [node.op_type for node in graph.node].count("Attention") == 5
    weights = pipeline.encode(pipeline.preprocess([samples()[0].image]))["image_weights"].numpy()
    assert weights.shape == (1, 37) and weights.sum() == pytest.approx(37, rel=1e-5)

    examples = list(scenes.examples(6, seed=3))
    images, prompts = [e.image for e in examples], [e.question.prompt for e in examples]
    together = pipeline.generate(images, prompts)
    assert len({answer.num_kept for answer in together}) > 1  # images differ in how many tokens they need
    for answer, image, prompt in zip(together, images, prompts):
        (alone,) = pipeline.generate([image], [prompt])
        assert (answer.kept_indices, answer.token_ids) == (alone.kept_indices, alone.token_ids)
        by_ratio = pipeline.generate([image], [prompt], ratio=1 - answer.num_kept / 32)[0]
        assert (by_ratio.kept_indices, by_ratio.token_ids) == (answer.kept_indices, answer.token_ids)
    with pytest.raises(UsageError, match="give one of them"):
        pipeline.generate(images, prompts, ratio=0.5, keep_mass=0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "l2-norm", "--points", "rank"], "method l2-norm does not take it; it is for catp"),
        (["--points", "probability"], "give --image-weights attention too"),
        (["--layers", "7"], "cross-attention layers 0 to 1"),
        (["--layer-weights", "1,x"], "give numbers separated by commas, or a JSON file"),
        (["--keep-mass", "0"], "0 < mass <= 1"),
        (["--method", "none", "--ratio", "0", "--keep-mass", "0.5"], "keeps every token"),
    ],
)
def test_options_that_can_not_be_exit_2(tmp_path: Path, arguments: list[str], message: str) -> None:
    result = RUNNER.invoke(app, [*arguments, "-o", str(tmp_path / "out")])
    assert result.exit_code == 2, result.output
    assert message in result.stderr and "Traceback" not in result.output
    assert not any(tmp_path.iterdir())


def test_layer_weights_from_a_file_or_a_list(tmp_path: Path) -> None:
    path = tmp_path / "weights.json"
    path.write_text("[1, 0.5]")
    assert read_weights(str(path)) == read_weights("1,0.5") == (1.0, 0.5)


@pytest.mark.heavy  # one more export, of the simplest vote
def test_method_none_keeps_every_token(tmp_path: Path, demo_bundle: Path) -> None:
    assert RUNNER.invoke(app, ["--method", "none", "-o", str(tmp_path / "all")]).exit_code == 0
    pipeline = Pipeline.load(tmp_path / "all")
    sample = samples()[0]
    answer = pipeline.generate([sample.image], [sample.prompt])[0]
    assert answer.kept_indices == list(range(32))
    assert (
        answer.token_ids == Pipeline.load(demo_bundle).generate([sample.image], [sample.prompt], ratio=0)[0].token_ids
    )
    with pytest.raises(UsageError, match="--method none"):
        pipeline.generate([sample.image], [sample.prompt], ratio=0.5)


@pytest.mark.heavy
def test_wrong_graphs_are_never_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = RankPoints.scores
    monkeypatch.setattr(RankPoints, "scores", lambda self, maps: -right(self, maps))  # keeps the worst tokens
    monkeypatch.setattr(
        VisionEncoder, "forward", lambda self, pixel_values: self.vision_model(pixel_values).last_hidden_state * 1.001
    )
    linear = operators.tied_linear
    monkeypatch.setattr(operators, "tied_linear", lambda *inputs: linear(*inputs) * float("nan"))
    result = RUNNER.invoke(app, ["-o", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "nothing was published" in result.stderr
    assert "vision_encoder: image_embeds: relative error is 0.001" in result.stderr
    assert "qformer_voting: kept sets that differ beyond near ties is 4" in result.stderr
    assert "language_model: logits: relative error is nan" in result.stderr
    assert "tokenizer" not in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.heavy  # publishing in one step is tested beside its code
def test_a_killed_export_leaves_nothing_that_loads(tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", CODE, "-o", str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(tmp_path.glob(".out.incomplete-*/*.onnx_data")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    (leftover,) = tmp_path.iterdir()
    for path in (out, leftover):
        with pytest.raises(UsageError):
            Pipeline.load(path)
    # The next export to the same place cleans up: tests/runtime/bundle/test_publish.py.


@pytest.mark.heavy  # exports until a disk of its own is full
def test_a_full_disk_publishes_nothing(tmp_path: Path) -> None:
    # A limit on file size fails writes as a full disk does, in the middle of the weights.
    result = subprocess.run(
        [sys.executable, "-c", CODE, "-o", str(tmp_path / "out")],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)),
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "300"},
    )
    assert result.returncode == 1, result.stderr
    assert "writing failed" in result.stderr and "Traceback" not in result.stderr
    assert not any(tmp_path.iterdir())


def test_too_little_disk_is_said_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("catp.export.exporter.shutil.disk_usage", lambda _: usage._replace(free=70_000_000))
    monkeypatch.setattr("catp.export.exporter.compute_expected", lambda *_: pytest.fail("computed"))
    result = RUNNER.invoke(app, ["-o", str(tmp_path / "out")])
    assert result.exit_code == 1, result.output
    # The demo's 2.2 million parameters in float32, and what lies beside them.
    assert "the bundle needs 0.073 GB in" in " ".join(result.stderr.split()) and "0.070 GB are free" in result.stderr
    assert not any(tmp_path.iterdir())
