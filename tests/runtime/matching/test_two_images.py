"""Verdicts on statements about two images against the checkpoint's own, and what the command says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import samples, scenes
from catp.export.encoder_pruning.guidance import Guidance
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.export.image_encoders.pruned import PrunedEncoder
from catp.runtime import EncoderWish, Pipeline, UsageError
from catp.runtime.commands.inspect import app as inspect_command
from catp.runtime.commands.match import app
from catp.runtime.commands.run import app as run_command
from catp.runtime.matching.base import probability_of_yes
from catp.runtime.matching.two_images import verdicts
from catp.runtime.providers.base import to_host

SAID = ["what is red?", "both pictures have a red circle in the bottom right, and where is it?", "green", ""]
IMAGES = [str(sample.image) for sample in samples()[:2]]


@pytest.fixture(scope="module")
def judge(nlvr_bundle: Path) -> Pipeline:
    return Pipeline.load(nlvr_bundle)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Any, Any]]:
    pictures = [example.image for example in scenes.examples(8, seed=8)]
    return list(zip(pictures[:4], pictures[4:]))


def by_pytorch(checkpoint: Path, pairs: list[tuple[Any, Any]]) -> np.ndarray:
    """Probabilities of true, each statement alone."""
    loaded = load_checkpoint(str(checkpoint))
    found = []
    for pair, said in zip(pairs, SAID):
        pixels = loaded.image_processor(list(pair), return_tensors="pt").pixel_values
        ids = loaded.tokenizer(said, return_tensors="pt")
        with torch.no_grad():
            found.append(loaded.model(pixels, ids.input_ids, ids.attention_mask).softmax(-1)[0, 1].item())
    return np.array(found)


def chances(found: list[Any]) -> np.ndarray:
    return np.array([verdict.probability_of_true for verdict in found])


def test_verdicts_are_those_of_the_checkpoint_in_a_ragged_batch(
    judge: Pipeline, nlvr_checkpoint: Path, pairs: list[tuple[Any, Any]]
) -> None:
    wanted = by_pytorch(nlvr_checkpoint, pairs)
    assert np.ptp(wanted) > 0.05  # or else nothing was compared
    np.testing.assert_allclose(chances(judge.judge(pairs, SAID)), wanted, atol=1e-5)
    swapped = chances(judge.judge([(second, first) for first, second in pairs], SAID))
    assert np.abs(swapped - wanted).max() > 1e-3


def test_a_pair_that_is_asked_about_twice_is_encoded_once(
    judge: Pipeline, pairs: list[tuple[Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    whole = judge.preprocess
    monkeypatch.setattr(judge, "preprocess", lambda images: (seen.append(len(images)), whole(images))[1])
    asked = [pairs[0], pairs[1], pairs[0]]
    together = chances(judge.judge(asked, SAID[:3]))
    assert seen == [4]
    alone = [chances(judge.judge([pair], [said]))[0] for pair, said in zip(asked, SAID)]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_the_likelier_answer_is_the_verdict() -> None:
    logits = np.array([[0.0, 2.0], [3.0, -1.0], [1.0, 1.0], [-800.0, 800.0]], np.float32)
    assert probability_of_yes(logits) == pytest.approx([0.880797, 0.017986, 0.5, 1.0], abs=1e-6)
    found = verdicts(logits)
    assert [verdict.true for verdict in found] == [True, False, False, True]
    assert [verdict.probability for verdict in found] == pytest.approx([0.880797, 0.982014, 0.5, 1.0], abs=1e-6)


def test_the_command_prints_a_line_per_statement(nlvr_bundle: Path, judge: Pipeline) -> None:
    arguments = [str(nlvr_bundle), "--image", IMAGES[0], "--image", IMAGES[1], "--text", "red", "--text", "blue"]
    plain = CliRunner().invoke(app, arguments)
    assert plain.exit_code == 0, plain.output
    wanted = judge.judge([(IMAGES[0], IMAGES[1])] * 2, ["red", "blue"])
    names = f"{IMAGES[0]}, {IMAGES[1]}"
    assert plain.stdout.splitlines() == [
        f"{'true' if verdict.true else 'false'} {verdict.probability:.4f}  {names}: {word}"
        for verdict, word in zip(wanted, ("red", "blue"))
    ]
    lines = [json.loads(line) for line in CliRunner().invoke(app, [*arguments, "--json"]).stdout.splitlines()]
    assert [(line["text"], line["true"]) for line in lines] == [("red", wanted[0].true), ("blue", wanted[1].true)]
    assert lines[0]["images"] == IMAGES and lines[0]["probability"] == pytest.approx(wanted[0].probability, abs=1e-5)


def test_the_order_of_the_images_is_that_of_the_options(nlvr_bundle: Path, judge: Pipeline) -> None:
    arguments = [str(nlvr_bundle), "--image", IMAGES[1], "--image", IMAGES[0], "--text", "red", "--json"]
    found = json.loads(CliRunner().invoke(app, arguments).stdout)
    (wanted,) = judge.judge([(IMAGES[1], IMAGES[0])], ["red"])
    (other,) = judge.judge([(IMAGES[0], IMAGES[1])], ["red"])
    assert found["probability"] == pytest.approx(wanted.probability, abs=1e-6)
    assert wanted.probability_of_true != pytest.approx(other.probability_of_true, abs=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_images_is_refused(nlvr_bundle: Path, count: int) -> None:
    images = [part for place in range(count) for part in ("--image", IMAGES[place % 2])]
    found = CliRunner().invoke(app, [str(nlvr_bundle), *images, "--text", "red"])
    assert found.exit_code == 2 and f"{count} --image: this model judges statements about two images" in found.stderr
    assert "Traceback" not in found.stderr


def test_what_a_bundle_can_not_do_is_said(nlvr_bundle: Path, demo_bundle: Path, judge: Pipeline) -> None:
    image = ["--image", IMAGES[0], "--image", IMAGES[1]]
    asked = CliRunner().invoke(run_command, [str(nlvr_bundle), "--image", IMAGES[0], "--prompt", "what?"])
    assert asked.exit_code == 2 and "it scores texts; use catp-match" in asked.stderr
    given = CliRunner().invoke(app, [str(nlvr_bundle), *image, "--text", "red", "--ratio", "0.5"])
    assert given.exit_code == 2 and "has no query tokens to leave out" in given.stderr
    with pytest.raises(UsageError, match="the text encoder takes 64; give a shorter one"):
        judge.judge([(IMAGES[0], IMAGES[1])], ["red " * 90])
    with pytest.raises(UsageError, match="1 pairs and 2 statements: give two images for each statement"):
        judge.judge([(IMAGES[0], IMAGES[1])], ["red", "blue"])
    with pytest.raises(UsageError, match="which scores no texts"):
        judge.match([IMAGES[0]], ["red"])
    with pytest.raises(UsageError, match="judges no statements about two images"):
        Pipeline.load(demo_bundle).judge([(IMAGES[0], IMAGES[1])], ["red"])


def test_inspect_shows_its_graphs(nlvr_bundle: Path) -> None:
    shown = CliRunner().invoke(inspect_command, [str(nlvr_bundle)])
    assert shown.exit_code == 0 and "statement_encoder" in shown.stdout


@pytest.mark.heavy
def test_an_encoder_that_prunes_by_a_schedule(
    nlvr_checkpoint: Path, tmp_path: Path, pairs: list[tuple[Any, Any]]
) -> None:
    bundle = export_bundle(
        str(nlvr_checkpoint), tmp_path / "bundle", encoder=EncoderOptions("cls", 0.6, text_flops=0.6)
    )
    assert all(check.passed for check in bundle.manifest.parity if not check.advisory)
    pipeline = Pipeline.load(bundle.path)
    together = chances(pipeline.judge(pairs, SAID))
    alone = [chances(pipeline.judge([pair], [said]))[0] for pair, said in zip(pairs, SAID)]
    np.testing.assert_allclose(together, alone, atol=1e-5)
    fewer = chances(pipeline.judge(pairs, SAID, EncoderWish(flops=0.5)))
    assert np.abs(fewer - together).max() > 1e-4


@pytest.mark.heavy
def test_counts_of_the_two_images_are_coupled_in_the_dynamic_form(
    nlvr_checkpoint: Path, tmp_path: Path, pairs: list[tuple[Any, Any]]
) -> None:
    copy = Path(shutil.copytree(nlvr_checkpoint, tmp_path / "checkpoint"))
    guide = torch.randn(7, 60, generator=torch.Generator().manual_seed(3)) * 0.3
    save_file({"space_dict": guide}, copy / "madtp.safetensors")
    (copy / "madtp.json").write_text('{"temperature": 4.0}\n')
    bundle = export_bundle(str(copy), tmp_path / "bundle", encoder=EncoderOptions(form="dynamic"))
    assert all(check.passed for check in bundle.manifest.parity if not check.advisory)
    assert bundle.manifest.question_pruning is None and bundle.manifest.text_pruning is None
    pipeline = Pipeline.load(bundle.path)
    differ, fewest = 0, 49
    for pair in pairs:
        together = to_host(pipeline.encode(pipeline.preprocess(pair))["kept_counts"])
        alone = [to_host(pipeline.encode(pipeline.preprocess([image]))["kept_counts"]) for image in pair]
        assert together[0] == max(alone[0][0], alone[1][0])
        differ += int(alone[0][0] != alone[1][0])
        fewest = min(fewest, together[-1])
    assert differ and fewest < 40  # or else nothing is coupled, or pruned
    loaded = load_checkpoint(str(copy))
    for pair, said in zip(pairs, SAID):
        pixels = loaded.image_processor(list(pair), return_tensors="pt").pixel_values
        encoder = PrunedEncoder("image-tokens", bundle.manifest.encoder_pruning, Guidance(guide))  # type: ignore[arg-type]
        ids = loaded.tokenizer(said, return_tensors="pt")
        with torch.no_grad(), encoder.standing_in(loaded.model):
            wanted = loaded.model(pixels, ids.input_ids, ids.attention_mask).softmax(-1)[0, 1].item()
        assert chances(pipeline.judge([pair], [said])) == pytest.approx([wanted], abs=1e-4)


@pytest.mark.heavy
def test_half_precision_passes_its_checks(nlvr_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(str(nlvr_checkpoint), tmp_path / "bundle", precision="fp16")
    assert bundle.manifest.graphs["statement_encoder"].input("first_image_embeds").dtype == "float16"
    assert bundle.manifest.graphs["statement_encoder"].output("truth_logits").dtype == "float32"
