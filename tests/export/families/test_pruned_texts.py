"""Bundles whose text encoder prunes: exported, so held to PyTorch, and used by the commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import clip_tokenizer
from clip_official import official_vectors, official_weights, save_official_clip, tiny_clip
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app as calibrate_command
from catp.calibration.commands.eval import app as eval_command
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.commands.build import app as build_command
from catp.export.conversion.madtp import convert_madtp
from catp.export.demo import samples
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import EncoderWish, Pipeline
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.commands.inspect import app as inspect_command
from catp.runtime.commands.match import app as match_command

pytestmark = pytest.mark.heavy

RUNNER = CliRunner()
TEXTS = ["a black diamond in the bottom right", "red", "what is it, and where is the other one?"]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP of MADTP's official code, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("official")
    save_official_clip(folder / "checkpoint.pth", temperature=0.3)
    clip_tokenizer().save_pretrained(folder / "tokenizer")
    convert_madtp(folder / "checkpoint.pth", folder / "clip", str(folder / "tokenizer"))
    return folder / "clip"


@pytest.fixture(scope="module")
def guided(converted: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Both of its encoders by their own guidance, on a schedule."""
    out = tmp_path_factory.mktemp("guided") / "bundle"
    return export_bundle(str(converted), out, encoder=EncoderOptions(flops=0.6, text_flops=0.6))


def test_both_encoders_of_madtp_s_clip_go_by_its_maps(guided: Bundle) -> None:
    manifest = guided.manifest
    assert manifest.encoder_pruning is not None and manifest.encoder_pruning.rule == "madtp"
    assert manifest.text_pruning is not None and manifest.text_pruning.rule == "madtp"
    assert manifest.question_pruning is None
    assert all(check.passed for check in manifest.parity if not check.advisory)


def test_a_text_has_the_vector_that_it_has_alone(guided: Bundle, converted: Path) -> None:
    pipeline = Pipeline.load(guided.path)
    together = np.array(pipeline.embed_texts(TEXTS))
    alone = np.array([pipeline.embed_texts([text])[0] for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    loaded = load_checkpoint(str(converted))
    dense = loaded.model.get_text_features(**loaded.tokenizer(TEXTS[:1], return_tensors="pt")).pooler_output
    dense = (dense / dense.norm()).detach().numpy()[0]
    assert np.abs(dense - alone[0]).max() > 1e-3  # something was left out


def test_commands_say_that_the_text_encoder_prunes(guided: Bundle, tmp_path: Path) -> None:
    shown = RUNNER.invoke(inspect_command, [str(guided.path)])
    assert "text encoder: madtp in every layer keeps " in shown.stdout and "--text-encoder-flops 0.6" in shown.stdout
    image = str(samples()[0].image)
    matched = RUNNER.invoke(match_command, [str(guided.path), "--image", image, "--text", TEXTS[0], "--json"])
    assert matched.exit_code == 0 and -1 <= json.loads(matched.stdout)["similarity"] <= 1
    rows = [{"image": Path(image).name, "caption": TEXTS}]
    (tmp_path / "captions.json").write_text(json.dumps(rows))
    asked = ["--data", str(tmp_path / "captions.json"), "--images", str(Path(image).parent)]
    found = RUNNER.invoke(eval_command, [str(guided.path), *asked])
    assert found.exit_code == 0, found.output
    assert "text encoder: madtp in every layer keeps " in " ".join((found.stdout + found.stderr).split())
    told = RUNNER.invoke(eval_command, [str(guided.path), *asked, "--json"])
    assert json.loads(told.stdout)["text_encoder"].startswith("madtp in every layer keeps")


def test_the_dynamic_form_is_the_official_code_s(converted: Path, tmp_path: Path) -> None:
    """Counts and vectors of pictures, one by one, against its formulas; its texts stay whole in this form."""
    bundle = export_bundle(str(converted), tmp_path / "bundle", encoder=EncoderOptions(form="dynamic"))
    assert bundle.manifest.text_pruning is None
    pipeline, weights = Pipeline.load(bundle.path), official_weights(tiny_clip())
    images = [sample.image for sample in samples()[:3]]
    processor: Any = load_checkpoint(str(converted)).image_processor
    from catp.runtime.inputs.images import load_image

    for image in images:
        pixels = processor([load_image(image)], return_tensors="pt").pixel_values
        wanted, kept = official_vectors(weights, pixels, 0.3)
        encoded = pipeline.encode(pipeline.preprocess([load_image(image)]), encoder=EncoderWish())
        assert np.asarray(encoded["kept_counts"].numpy()).tolist() == kept and kept[0] < 49
        vector = np.array(pipeline.embed_images([load_image(image)])[0]).reshape(-1)
        np.testing.assert_allclose(vector, (wanted[0] / wanted[0].norm()).numpy(), atol=1e-4)


def test_blip_s_text_encoder_prunes_alone_and_with_an_image(
    blip_retrieval_checkpoint: Path, blip_retrieval_bundle: Path, tmp_path: Path
) -> None:
    options = EncoderOptions("cls", 0.8, text_flops=0.6)
    bundle = export_bundle(str(blip_retrieval_checkpoint), tmp_path / "bundle", encoder=options)
    spec = bundle.manifest.text_pruning
    assert spec is not None and spec.rule == "self-cls"
    assert open_bundle(bundle.path).manifest.text_pruning == spec
    pruned, dense = Pipeline.load(bundle.path), Pipeline.load(blip_retrieval_bundle)
    image = samples()[0].image
    together = pruned.match([image] * 3, TEXTS)
    alone = [pruned.match([image], [text])[0] for text in TEXTS]
    for name in ("similarity", "probability"):
        found = [getattr(match, name) for match in together]
        np.testing.assert_allclose(found, [getattr(match, name) for match in alone], atol=1e-5)
    whole = np.array(dense.embed_texts(TEXTS[:1]))
    assert np.abs(whole - np.array(pruned.embed_texts(TEXTS[:1]))).max() > 1e-4


TEXT_GRAPHS = {
    "clip_checkpoint": ["text_embedding"],
    "blip_retrieval_checkpoint": ["text_embedding", "image_text_matching"],
    "nlvr_checkpoint": ["statement_encoder"],
}


@pytest.mark.parametrize("fixture", TEXT_GRAPHS)
def test_lower_precisions_and_plans(fixture: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """fp16 is held to PyTorch by the export; plans are built for TensorRT-RTX and were executed on no GPU."""
    checkpoint, options = request.getfixturevalue(fixture), EncoderOptions("cls", 0.7, text_flops=0.6)
    half = export_bundle(str(checkpoint), tmp_path / "fp16", encoder=options, precision="fp16")
    assert half.manifest.text_pruning is not None and half.manifest.precision == "fp16"
    assert all(check.passed for check in half.manifest.parity if not check.advisory)
    full = export_bundle(str(checkpoint), tmp_path / "fp32", encoder=options)
    asked = "--to int8 --for cpu --samples 16 --questions 16 --max-accuracy-drop 0.99 --min-kept-overlap 0"
    arguments = [*asked.split(), "--no-sensitivity", "-o", str(tmp_path / "int8")]
    quantised = RUNNER.invoke(calibrate_command, ["precision", str(full.path), *arguments])
    assert quantised.exit_code == 0, quantised.output
    integers = open_bundle(tmp_path / "int8").manifest
    assert integers.text_pruning == full.manifest.text_pruning
    for graph in TEXT_GRAPHS[fixture]:
        quantization = integers.graphs[graph].quantization
        assert quantization is not None and quantization.layers > 4
    pytest.importorskip("tensorrt_rtx")
    target = ["--target", "tensorrt-rtx", "--compute-capability", "8.6", "--dynamic-encoder", "--json"]
    for folder in (half.path, full.path):
        built = RUNNER.invoke(build_command, [str(folder), *target])
        assert built.exit_code == 0, built.output
        assert set(TEXT_GRAPHS[fixture]) < set(json.loads(built.stdout.splitlines()[-1])["built"])
