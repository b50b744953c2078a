"""catp-explain of a Q-Former that reads the prompt: its votes and maps are those of plain PyTorch for that prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from references import received
from typer.testing import CliRunner

from catp.calibration.commands.explain import app
from catp.calibration.explanation.explanation import explain
from catp.calibration.explanation.picture import HEIGHT, WIDTH, method
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import samples
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline

IMAGE = samples()[0].image
PROMPTS = ("what is red?", "Question: what is in the bottom right of this picture of many things? Answer:")


def explained(bundle: Path, output: Path, prompt: str) -> dict[str, Any]:
    arguments = [str(bundle), "--image", str(IMAGE), "--prompt", prompt, "--ratio", "0.5", "-o", str(output), "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_votes_and_maps_are_those_of_plain_pytorch(
    instructblip_diagnostics_bundle: Path, instructblip_checkpoint: Path, tmp_path: Path
) -> None:
    reference = Reference(load_checkpoint(str(instructblip_checkpoint)))
    embeds = reference.image_embeds(reference.pixel_values([Image.open(IMAGE)])).embeds
    pipeline = Pipeline.load(instructblip_diagnostics_bundle)
    kept = []
    for number, prompt in enumerate(PROMPTS):
        found = explained(instructblip_diagnostics_bundle, tmp_path / f"{number}.png", prompt)
        query_embeds, evidence = reference.query_embeds(embeds, None, reference.instructions([prompt]))
        (scores,) = received([layer.numpy() for layer in evidence.self_attention])
        wanted = sorted(np.argsort(-scores, kind="stable")[:12].tolist())
        assert found["kept_indices"] == wanted and found["num_kept"] == 12
        np.testing.assert_allclose(found["token_scores"], scores / scores.sum() * np.sum(found["token_scores"]), 1e-4)
        for answer, tokens in ((found["answer"], wanted), (found["full_answer"], list(range(24)))):
            ids = reference.tokenize(prompt)
            limit = pipeline.manifest.text.max_new_tokens
            greedy = reference.continue_greedily(query_embeds[0], tokens, "original", ids, limit)
            assert answer == pipeline.detokenize(greedy.token_ids)
        seen = explain(pipeline, IMAGE, prompt, 0.5)
        maps = np.stack([layer[0].numpy() for layer in evidence.cross_attention if layer is not None])  # [L, H, N, I]
        np.testing.assert_allclose(seen.heat(seen.kept).ravel(), maps.mean((0, 1))[wanted, 1:].mean(0), atol=1e-5)
        assert method(seen).endswith(", of image and prompt")
        with Image.open(tmp_path / f"{number}.png") as picture:
            assert picture.size == (WIDTH, HEIGHT)
        kept.append(wanted)
    assert kept[0] != kept[1]  # or else a shared vote would do


@pytest.mark.parametrize("prompt", ["", "what " * 600])
def test_an_empty_prompt_is_read_and_a_long_one_refused(
    instructblip_diagnostics_bundle: Path, tmp_path: Path, prompt: str
) -> None:
    arguments = [str(instructblip_diagnostics_bundle), "--image", str(IMAGE), "-o", str(tmp_path / "out.png")]
    result = CliRunner().invoke(app, [*arguments, "--prompt", prompt])
    assert result.exit_code == (2 if prompt else 0), result.output
    assert "give a shorter one" in result.stderr if prompt else (tmp_path / "out.png").exists()
