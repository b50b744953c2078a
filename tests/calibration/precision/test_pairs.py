"""Precision of a model that judges statements about two images: what is asked, what it costs, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.calibration.commands.eval import app as eval_app
from catp.calibration.data.dataset import VqaExample
from catp.calibration.data.demo_pairs import DemoPairs
from catp.calibration.precision.calibrator import split
from catp.calibration.precision.comparison import ask
from catp.calibration.precision.ranges.observation import Examples, ObservingProvider, answer_each
from catp.calibration.precision.report import PrecisionReport
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.inspect import app as inspect_app
from catp.runtime.commands.match import app as match_app
from catp.runtime.providers.base import to_host

RUNNER = CliRunner()
GRAPHS = ["vision_encoder", "statement_encoder"]


def right_of(bundle: Path, statements: Sequence[VqaExample]) -> list[float]:
    """1 for each statement that is judged rightly, alone, without the product's own comparison."""
    pipeline = Pipeline.load(bundle, verify=False)
    found = []
    for said in statements:
        first, second = said.images
        (verdict,) = pipeline.judge([(first, second)], [said.question])
        found.append(float(said.answers == ("true" if verdict.true else "false",)))
    return found


@pytest.mark.heavy
def test_a_trained_model_keeps_its_accuracy(
    pairs_bundle: Path, calibrated: Callable, quantised_products: Callable[[onnx.GraphProto], int]
) -> None:
    made = calibrated("pairs", pairs_bundle, "--to", "int8", "--for", "cpu", "--questions", "150", "--no-sensitivity")
    report = PrecisionReport.model_validate_json((made / "report.json").read_text())
    asked = split(DemoPairs(), 16, 150, 0).confirmation
    assert len(asked) == 150 and report.calibration is not None and report.graphs is not None
    before, after = right_of(pairs_bundle, asked), right_of(made / "bundle", asked)
    assert np.mean(before) >= 0.97 and np.mean(after) >= np.mean(before) - 0.02
    (change,) = report.calibration.accuracy
    # Dynamic scales are a batch's, so that one verdict of 150 may be another one alone.
    assert change.before == pytest.approx(np.mean(before)) and change.after == pytest.approx(np.mean(after), abs=0.007)
    assert (change.ratio, report.calibration.kept_overlap, report.calibration.questions) == (0, 1, 150)
    assert report.calibration.metric == "exact match" and report.calibration.data == "demo"

    manifest = open_bundle(made / "bundle").manifest
    assert manifest.calibration == report.calibration and list(manifest.graphs) == GRAPHS
    for name, graph in manifest.graphs.items():
        assert graph.quantization is not None and graph.quantization.format == "int8"
        assert report.graphs[name].after < report.graphs[name].before / 2.3
        model = onnx.load(made / "bundle" / f"{name}.onnx", load_external_data=False)
        assert quantised_products(model.graph) == graph.quantization.layers >= 24
    printed = RUNNER.invoke(inspect_app, [str(made / "bundle")]).stdout
    assert "calibrated: exact match at ratio 0 " in printed and printed.count("int8 (fp32), for cpu") == 2
    found = RUNNER.invoke(eval_app, [str(made / "bundle"), "--limit", "60", "--json"])
    assert found.exit_code == 0 and json.loads(found.stdout)["scores"][0]["accuracy"] > 0.95


@pytest.mark.heavy
def test_for_tensorrt_scales_come_from_both_images(pairs_bundle: Path, calibrated: Callable) -> None:
    options = ("--to", "int8", "--for", "tensorrt", "--questions", "60", "--no-sensitivity")
    made = calibrated("pairs-tensorrt", pairs_bundle, *options)
    manifest = open_bundle(made / "bundle").manifest
    assert manifest.calibration is not None and manifest.calibration.samples == 16
    (change,) = manifest.calibration.accuracy
    assert change.after >= change.before - 0.02
    for graph in manifest.graphs.values():
        assert graph.quantization is not None and graph.quantization.activations == "static"
        nodes = onnx.load(made / "bundle" / graph.file.path, load_external_data=False).graph.node
        assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in nodes}


def test_answers_are_those_of_judging_one_by_one(nlvr_bundle: Path, tmp_path: Path) -> None:
    asked = list(DemoPairs(13, 3))
    asked[4] = replace(asked[4], second=tmp_path / "missing.png")
    advanced: list[int] = []
    found = ask(nlvr_bundle, asked, "exact match", 0, 4, advanced.append)
    left = [*asked[:4], *asked[5:]]
    assert found.ratios == (0.0,) and advanced == [4, 4, 4, 1] and found.patches is None
    assert found.images == tuple(said.image_key for said in left)
    assert found.accuracy[:, 0].tolist() == right_of(nlvr_bundle, left)
    assert 0 < found.accuracy.sum() < 12


def test_ranges_see_both_images_and_the_bare_statement(nlvr_bundle: Path) -> None:
    asked, examples = list(DemoPairs(40, 3))[:4], Examples()
    bundle = open_bundle(nlvr_bundle)
    pipeline = Pipeline(bundle, ObservingProvider({}, {}, examples))
    assert list(answer_each(pipeline, asked, (bundle.manifest.tokens,))) == [1, 2, 3, 4]
    for row, said in enumerate(asked):
        pixels = examples.calls["vision_encoder"][row]["pixel_values"]
        np.testing.assert_array_equal(pixels, pipeline.preprocess(said.images))
        assert not np.array_equal(pixels[0], pixels[1])
        call = examples.calls["statement_encoder"][row]
        assert call["text_ids"].tolist() == [pipeline.tokenize(said.question)]
        embeds = to_host(pipeline.encode(pixels)["image_embeds"])
        np.testing.assert_allclose(call["first_image_embeds"], embeds[:1], atol=1e-5)
        np.testing.assert_allclose(call["second_image_embeds"], embeds[1:], atol=1e-5)


@pytest.mark.heavy
def test_layers_of_both_graphs_are_measured(nlvr_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    few = ["--samples", "16", "--questions", "12", "--max-accuracy-drop", "0.9"]
    arguments = ["--to", "int8", "--for", "cpu", *few, "--exclude", "*.mlp.fc1", "--json", "-o", str(output)]
    result = RUNNER.invoke(app, ["precision", str(nlvr_bundle), *arguments])
    assert result.exit_code == 0, result.output
    report = PrecisionReport.model_validate_json(result.stdout)
    assert {error.graph for error in report.errors} == set(GRAPHS) and all(0 < e.error < 1 for e in report.errors)
    assert any("crossattention" in error.layer for error in report.errors)
    assert not any(error.layer.endswith("mlp.fc1") for error in report.errors)
    assert "Next: catp-match" in " ".join(result.stderr.split())
    image = tmp_path / "a.png"
    next(iter(DemoPairs(1, 3))).image.save(image)  # type: ignore[union-attr]
    pair = ["--image", str(image), "--image", str(image), "--text", "both pictures have a red circle"]
    assert RUNNER.invoke(match_app, [str(output), *pair]).stdout[:4] in ("true", "fals")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "int8", "--data", "easy-vqa"], "accepted: demo, or a file of NLVR2's statements"),
        (["--to", "int8", "--qformer", "int8"], "--qformer: this bundle's graphs are vision_encoder, statement_enc"),
        (["--to", "int8", "--decode", "int4"], "--decode: this bundle's graphs are vision_encoder, statement_enc"),
        (["--to", "int8", "--questions", "3"], "too few to tell it from what loses half of the answers"),
    ],
)
def test_what_does_not_fit_is_refused(nlvr_bundle: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    output = tmp_path / "out"
    result = RUNNER.invoke(app, ["precision", str(nlvr_bundle), "--for", "cpu", *arguments, "-o", str(output)])
    assert result.exit_code == 2 and message in result.stderr, result.output
    assert result.stderr.count("error: ") == 1 and not output.exists()


def test_nlvr2s_own_file_is_for_this_family_alone(nlvr_bundle: Path, demo_bundle: Path, tmp_path: Path) -> None:
    lines = []
    for number, said in enumerate(DemoPairs(60, 3)):
        for place, image in enumerate(said.images):
            image.save(tmp_path / f"dev-{number}-0-img{place}.png")  # type: ignore[union-attr]
        label = said.answers[0].capitalize()
        lines.append({"sentence": said.question, "label": label, "identifier": f"dev-{number}-0-0"})
    data, output = tmp_path / "dev.json", tmp_path / "out"
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = ["--samples", "16", "--questions", "20", "--max-accuracy-drop", "0.9", "--no-sensitivity"]
    arguments = ["--to", "int8", "--for", "cpu", "--data", str(data), *few, "-o", str(output)]
    result = RUNNER.invoke(app, ["precision", str(nlvr_bundle), *arguments])
    assert result.exit_code == 0, result.output
    found = open_bundle(output).manifest.calibration
    assert found is not None and (found.data, found.questions, found.metric) == ("dev.json", 20, "exact match")
    refused = RUNNER.invoke(app, ["precision", str(demo_bundle), *arguments[:-1], str(tmp_path / "no")])
    assert refused.exit_code == 2 and "it is none for BLIP-2" in refused.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("form", ["schedule", "dynamic"])
def test_an_encoder_that_prunes_keeps_its_patches(
    form: Literal["schedule", "dynamic"], nlvr_checkpoint: Path, tmp_path: Path
) -> None:
    options = EncoderOptions("norm", 0.7)
    checkpoint = nlvr_checkpoint
    if form == "dynamic":
        options = EncoderOptions(form="dynamic")
        checkpoint = Path(shutil.copytree(nlvr_checkpoint, tmp_path / "checkpoint"))
        guide = torch.randn(7, 60, generator=torch.Generator().manual_seed(3)) * 0.3
        save_file({"space_dict": guide}, checkpoint / "madtp.safetensors")
        (checkpoint / "madtp.json").write_text('{"temperature": 4.0}\n')
    export_bundle(str(checkpoint), tmp_path / "bundle", encoder=options)
    few = ["--samples", "16", "--questions", "12", "--max-accuracy-drop", "0.9"]
    arguments = ["--to", "int8", "--for", "cpu", *few, "-o", str(tmp_path / "out")]
    result = RUNNER.invoke(app, ["precision", str(tmp_path / "bundle"), *arguments])
    assert result.exit_code == 0, result.output
    found = open_bundle(tmp_path / "out").manifest.calibration
    assert found is not None and found.patch_overlap is not None and 0.7 < found.patch_overlap < 1
