"""catp-explain of models that score texts: two scores in place of answers, as Hugging Face has them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from catp.calibration.commands.explain import app
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import IMAGES
from catp.export.exporter import export_bundle
from catp.export.image_encoders.plan import EncoderOptions
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline

PICTURE, TEXT = IMAGES / "scene-a.png", "a black diamond"


def call(bundle: Path, output: Path, *arguments: str) -> tuple[int, str, str]:
    given = [str(bundle), "--image", str(PICTURE), "--prompt", TEXT, "-o", str(output), *arguments]
    result = CliRunner().invoke(app, given)
    return result.exit_code, result.stdout, " ".join(result.stderr.split())


@pytest.mark.heavy
def test_a_text_is_scored_with_all_query_tokens_and_with_those_kept(retrieval_checkpoint: Path, tmp_path: Path) -> None:
    bundle = export_bundle(str(retrieval_checkpoint), tmp_path / "bundle", diagnostics=True).path
    code, output, errors = call(bundle, tmp_path / "seen.png", "--ratio", "0.75", "--json")
    assert code == 0, errors
    found = json.loads(output)
    pipeline = Pipeline.load(bundle)
    (kept,) = pipeline.match([PICTURE], [TEXT], 0.75)
    assert found["kept_indices"] == kept.kept_indices and len(kept.kept_indices) == found["num_kept"]
    assert found["answer"] == f"fits: {kept.probability:.1%}, similarity {kept.similarity:.3f}"
    best = np.argsort(-np.array(found["token_scores"]), kind="stable")[: found["num_kept"]]
    assert sorted(best.tolist()) == found["kept_indices"]
    # Hugging Face's own model, with all query tokens, and with these alone.
    reference = Reference(load_checkpoint(str(retrieval_checkpoint)))
    pixels, ids = torch.from_numpy(pipeline.preprocess([PICTURE])), pipeline.tokenize(TEXT)
    for name, tokens in (("full_answer", range(24)), ("answer", found["kept_indices"])):
        logits = reference.match(pixels, ids, list(tokens)).astype(np.float64)
        wanted = 100 / (1 + np.exp(logits[0] - logits[1]))
        assert float(found[name].split("%")[0].removeprefix("fits: ")) == pytest.approx(wanted, abs=0.06)
    assert (tmp_path / "seen.png").stat().st_size > 10_000
    code, _, errors = call(bundle, tmp_path / "other.png", "--keep-mass", "0.5")
    assert code == 2 and "scores texts after equally many tokens each" in errors


@pytest.mark.heavy
def test_the_patches_that_a_clip_keeps_are_drawn(clip_checkpoint: Path, tmp_path: Path) -> None:
    options = EncoderOptions(flops=0.7)
    bundle = export_bundle(str(clip_checkpoint), tmp_path / "bundle", diagnostics=True, encoder=options).path
    code, output, errors = call(bundle, tmp_path / "seen.png", "--json")
    assert code == 0, errors
    (match,) = Pipeline.load(bundle).match([PICTURE], [TEXT])
    assert json.loads(output)["answer"] == f"similarity {match.similarity:.3f}"


def test_nothing_of_two_images_is_drawn(nlvr_bundle: Path, tmp_path: Path) -> None:
    code, _, errors = call(nlvr_bundle, tmp_path / "seen.png")
    assert code == 2 and "votes for no query tokens" in errors and not (tmp_path / "seen.png").exists()
