"""catp-explain on bundles that prune twice: whose patches the kept query tokens read, followed here by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from catp.calibration.commands.explain import app
from catp.calibration.explanation.explanation import explain
from catp.calibration.explanation.patches import EncoderTrace, LayerPatches
from catp.calibration.explanation.picture import WIDTH, height_of
from catp.export.demo import samples
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.runtime import EncoderWish, Pipeline
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.providers.base import to_host

pytestmark = pytest.mark.heavy  # a bundle that prunes in both places takes half a minute

SAMPLE = samples()[0]
QUESTION = ["--image", str(SAMPLE.image), "--prompt", SAMPLE.prompt]
BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)


def explained(bundle: Path, picture: Path, *arguments: object) -> dict[str, Any]:
    given = [str(bundle), *QUESTION, "-o", str(picture), "--json", *map(str, arguments)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def seen(bundle: Path, wish: EncoderWish) -> tuple[Pipeline, dict[str, np.ndarray]]:
    """The pipeline, and all that its first two graphs say about the sample."""
    pipeline = Pipeline.load(bundle)
    encoded = pipeline.encode(pipeline.preprocess([SAMPLE.image]), [SAMPLE.prompt], wish)
    outputs = {name: to_host(value)[0] for name, value in encoded.items() if np.ndim(to_host(value)) > 1}
    return pipeline, outputs | {name: value[0] for name, value in pipeline.votes(encoded).outputs.items()}


@pytest.mark.parametrize("share", [0.7, 0.6])
def test_a_merged_tokens_attention_is_spread_over_its_patches(both_bundle: Path, tmp_path: Path, share: float) -> None:
    found = explained(both_bundle, tmp_path / "a.png", "--encoder-flops", share, "--ratio", 0.6)
    pipeline, outputs = seen(both_bundle, EncoderWish(flops=share))
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None
    owner = {}
    for patch in range(36):  # each patch is followed from layer to layer
        token = patch
        came = list(range(36))
        for layer in spec.layers:
            token = int(outputs[f"merged_into.{layer}"][came.index(token)])
            came = outputs.get(f"positions.{layer}", outputs["kept_positions"]).tolist()
        owner[patch] = token
    survivors = outputs["kept_positions"].tolist()
    assert set(owner.values()) == set(survivors) and all(owner[patch] == patch for patch in survivors)
    assert max(list(owner.values()).count(patch) for patch in survivors) > 1  # something was merged
    mean = outputs["query_attention"][found["kept_indices"]].mean(0)
    wanted = [mean[1 + survivors.index(owner[patch])] / list(owner.values()).count(owner[patch]) for patch in range(36)]
    np.testing.assert_allclose(found["kept_attention_to_patches"], wanted, atol=1e-6)
    assert found["kept_attention_to_cls"] == pytest.approx(float(mean[0]), abs=1e-6)
    assert sum(wanted) + mean[0] == pytest.approx(1, abs=1e-5)
    assert found["unseen_patches"] == []
    assert found["encoder"]["layers"][-1]["kept_patches"] == sorted(survivors)
    assert found["encoder"]["share_of_work"] == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "settings"),
    [
        (("--ratio", 0.75), {"ratio": 0.75}),
        (("--keep-mass", 0.6, "--encoder-flops", 0.6), {"keep_mass": 0.6, "encoder": EncoderWish(flops=0.6)}),
        (("--positions", "compact"), {"positions": "compact"}),
    ],
)
def test_what_is_kept_is_what_the_pipeline_keeps(
    both_bundle: Path, tmp_path: Path, arguments: tuple[object, ...], settings: dict[str, Any]
) -> None:
    found = explained(both_bundle, tmp_path / "a.png", *arguments)
    pipeline = Pipeline.load(both_bundle)
    (answer,) = pipeline.generate([SAMPLE.image], [SAMPLE.prompt], **settings)
    assert (found["answer"], found["kept_indices"]) == (answer.answer, answer.kept_indices)
    full = {**settings, "ratio": 0.0, "keep_mass": None}
    assert found["full_answer"] == pipeline.generate([SAMPLE.image], [SAMPLE.prompt], **full)[0].answer


@pytest.mark.filterwarnings("error")
def test_one_picture_has_both(both_bundle: Path, tmp_path: Path) -> None:
    picture = tmp_path / "both.png"
    result = CliRunner().invoke(app, [str(both_bundle), *QUESTION, "-o", str(picture)])
    assert result.exit_code == 0, result.output
    encoder, full, pruned = result.stdout.splitlines()
    assert encoder == "16 of 36 patches leave the encoder, which does 70% of its work"
    assert full == f"all 32 query tokens: {SAMPLE.answer}" and pruned.startswith("16 of 32 (ratio 0.5): ")
    found = explain(Pipeline.load(both_bundle), SAMPLE.image, SAMPLE.prompt)
    with Image.open(picture) as image:
        assert image.size == (WIDTH, height_of(found.encoder))
        pixels = np.asarray(image.convert("RGB"))
    assert (pixels[:20] == 255).all() and (pixels[-20:] == 255).all() and (pixels[:, -20:] == 255).all()
    # Votes at their usual place, and below them the layers, with lines from the patches that went.
    for part in (pixels[680:715], pixels[1112:1322]):
        rows = part.reshape(-1, 3)
        assert (rows == BLUE).all(1).any() and (rows == ORANGE).all(1).any()


def test_instructblip_reads_the_prompt_and_sees_no_dropped_patch(
    both_instructblip_bundle: Path, tmp_path: Path
) -> None:
    found = explained(both_instructblip_bundle, tmp_path / "a.png", "--ratio", 0.5)
    pipeline, outputs = seen(both_instructblip_bundle, EncoderWish())
    (answer,) = pipeline.generate([SAMPLE.image], [SAMPLE.prompt], 0.5)
    assert (found["answer"], found["kept_indices"]) == (answer.answer, answer.kept_indices)
    assert found["token_scores"] == pytest.approx(outputs["token_scores"].tolist())
    other = pipeline.encode(pipeline.preprocess([SAMPLE.image]), ["something else"])
    assert pipeline.votes(other).scores[0].tolist() != pytest.approx(outputs["token_scores"].tolist())
    mean = outputs["query_attention"][found["kept_indices"]].mean(0)
    wanted = np.zeros(49)
    wanted[outputs["kept_positions"]] = mean[1:]
    np.testing.assert_allclose(found["kept_attention_to_patches"], wanted, atol=1e-6)
    assert found["unseen_patches"] == sorted(set(range(49)) - set(outputs["kept_positions"].tolist())) != []


def test_patches_in_one_merged_token_share_its_attention(both_bundle: Path) -> None:
    """By the merge "one": of six patches, 1 and 5 go in a first layer, then that token with patch 2 in a second."""
    spec = open_bundle(both_bundle).manifest.encoder_pruning
    assert spec is not None
    last = LayerPatches(1, np.array([0, 3, 4]), 1, {})
    trace = EncoderTrace(spec, (last,), np.array([4, 0, 3, -1]), np.array([0, -1, -1, 3, 4, -1]), 0.5)
    attention = np.array([[0.1, 0.2, 0.3, 0.1, 0.3], [0.0, 0.0, 0.4, 0.0, 0.6]], np.float32)
    wanted = [[0.1, 0.3, 0.1, 0.1, 0.1, 0.2, 0.1], [0.0, 0.4, 0.2, 0.2, 0.0, 0.0, 0.2]]
    np.testing.assert_allclose(trace.on_patches(attention), wanted, atol=1e-6)
    assert trace.survivors.tolist() == [0, 3, 4] and trace.unseen.tolist() == []


def test_merged_tokens_of_a_real_bundle(instructblip_checkpoint: Path, tmp_path: Path) -> None:
    """By the merge "one", what is left over goes to all patches that are no token of their own."""
    bundle = tmp_path / "bundle"
    options = EncoderOptions(rule="cls", flops=0.85, merge="one")
    export_bundle(str(instructblip_checkpoint), bundle, encoder=options, diagnostics=True)
    found = explained(bundle, tmp_path / "a.png", "--ratio", 0.5)
    _, outputs = seen(bundle, EncoderWish())
    mean, positions = outputs["query_attention"][found["kept_indices"]].mean(0), outputs["kept_positions"]
    assert (positions < 0).any()
    wanted = np.full(49, mean[1:][positions < 0].sum() / (49 - (positions >= 0).sum()))
    wanted[positions[positions >= 0]] = mean[1:][positions >= 0]
    np.testing.assert_allclose(found["kept_attention_to_patches"], wanted, atol=1e-6)


def test_what_is_not_asked_about_one_picture_is_refused(both_bundle: Path, demo_bundle: Path, tmp_path: Path) -> None:
    for bundle, arguments, words in (
        (
            both_bundle,
            ["--encoder-temperature", "1"],
            "encoder temperature 1: this bundle's encoder keeps as",
        ),
        (
            both_bundle,
            ["--encoder-flops", "0.01"],
            "encoder flops 0.01: pruning in layers 0, 1, 2, 3 leaves",
        ),
        (both_bundle, ["--ratio", "1"], "0 <= ratio < 1"),
        (
            demo_bundle,
            ["--encoder-flops", "0.5"],
            "the vision encoder of this bundle (BLIP-2 with a decoder-only language model) prunes nothing",
        ),
    ):
        result = CliRunner().invoke(app, [str(bundle), *QUESTION, *arguments, "-o", str(tmp_path / "x.png")])
        (line,) = result.stderr.splitlines()
        assert result.exit_code == 2 and line.startswith("error: ") and words in line, line
    assert not list(tmp_path.iterdir())
