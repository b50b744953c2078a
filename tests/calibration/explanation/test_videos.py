"""catp-explain of a video: each frame's votes and maps are those of plain PyTorch, drawn one below another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from references import count_points
from typer.testing import CliRunner, Result

from catp.calibration.commands.explain import app
from catp.calibration.explanation.explanation import explain, explain_frames
from catp.calibration.explanation.picture import HEIGHT, WIDTH, headline, height_of
from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo import samples
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline, UsageError
from catp.runtime.inputs.images import load_image
from catp.runtime.providers.base import to_host

PROMPT = "what is red?"
PICTURES = [load_image(sample.image) for sample in samples()][:3]
BLUE, ORANGE = (0x00, 0x72, 0xB2), (0xE6, 0x9F, 0x00)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "video").mkdir()
    for number in (2, 0, 1):
        PICTURES[number].save(tmp_path / "video" / f"frame_{number + 9}.png")
    return tmp_path / "video"


def call(bundle: Path, image: Path, output: Path, *arguments: str) -> Result:
    given = ["--image", str(image), "--prompt", PROMPT, "-o", str(output), *arguments]
    return CliRunner().invoke(app, [str(bundle), *given])


def test_each_frame_is_plain_pytorchs(video_bundle: Path, video_checkpoint: Path, folder: Path, tmp_path: Path) -> None:
    reference = Reference(load_checkpoint(str(video_checkpoint)))
    embeds = reference.image_embeds(torch.cat([reference.pixel_values([picture]) for picture in PICTURES])).embeds
    query_embeds, evidence = reference.query_embeds(embeds, None, reference.instructions([PROMPT] * 3))
    maps = [layer.numpy() for layer in evidence.cross_attention if layer is not None]  # [F, H, N, I] each
    points = count_points(maps)
    chosen = [sorted(sorted(range(24), key=lambda q: (-scores[q], q))[:12]) for scores in points]
    result = call(video_bundle, folder, tmp_path / "a.png", "--ratio", "0.5", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    kept = [24 * frame + query for frame, queries in enumerate(chosen) for query in queries]
    assert (found["frames"], found["num_kept"], found["kept_indices"]) == (3, 36, kept)
    assert found["num_kept_of_frames"] == [12, 12, 12]
    np.testing.assert_allclose(found["token_scores"], points, rtol=0.01)
    pipeline, ids = Pipeline.load(video_bundle), reference.tokenize(PROMPT)
    for answer, tokens in ((found["answer"], kept), (found["full_answer"], list(range(72)))):
        limit = pipeline.manifest.text.max_new_tokens
        greedy = reference.continue_greedily(query_embeds.reshape(72, -1), tokens, "original", ids, limit)
        assert answer == pipeline.detokenize(greedy.token_ids)
    for frame, seen in enumerate(explain_frames(pipeline, folder, PROMPT, 0.5)):
        mean = np.mean([layer[frame].mean(0) for layer in maps], 0)
        np.testing.assert_allclose(seen.heat(seen.kept).ravel(), mean[chosen[frame], 1:].mean(0), atol=1e-5)
        assert seen.kept.tolist() == chosen[frame] and seen.frame == frame
    assert len({tuple(queries) for queries in chosen}) > 1


def test_a_page_for_every_frame(video_bundle: Path, folder: Path, tmp_path: Path) -> None:
    result = call(video_bundle, folder, tmp_path / "a.png", "--keep-mass", "0.25")
    assert result.exit_code == 0, result.output
    frames = explain_frames(Pipeline.load(video_bundle), folder, PROMPT, keep_mass=0.25)
    kept = [len(frame.kept) for frame in frames]
    assert len(set(kept)) > 1
    first, second = result.stdout.splitlines()
    assert first.startswith("all 72 query tokens of 3 frames: ")
    assert second.startswith(f"{sum(kept)} of 72 (25 % of the votes): ")
    assert headline(frames).startswith(f"With {sum(kept)} of its 72 query tokens the model gives")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (WIDTH, 3 * HEIGHT)
        pixels = np.asarray(picture.convert("RGB"))
    for place in range(3):  # score bars, where those of an image are
        bars = pixels[place * HEIGHT + 680 : place * HEIGHT + 715].reshape(-1, 3)
        assert (bars == BLUE).all(1).any() and (bars == ORANGE).all(1).any()
    facts = [pixels[place * HEIGHT + 84 : place * HEIGHT + 400, 1090:] for place in range(3)]
    assert [bool((part < 100).any()) for part in facts] == [True, False, False]  # answers are about all frames


def test_what_is_no_page_is_refused(video_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "long").mkdir()
    for number in range(33):
        PICTURES[0].save(tmp_path / "long" / f"{number}.png")
    result = call(video_bundle, tmp_path / "long", tmp_path / "a.png")
    assert result.exit_code == 2 and "video: 33 frames, and 32 are shown at most; give fewer" in result.stderr
    assert not (tmp_path / "a.png").exists()
    pipeline = Pipeline.load(video_bundle)
    with pytest.raises(UsageError, match="video: 3 frames, and one image is to be explained"):
        explain(pipeline, PICTURES, PROMPT)  # type: ignore[arg-type]
    assert (
        explain(pipeline, PICTURES[0], PROMPT, 0.5).kept.tolist()
        == explain_frames(pipeline, PICTURES, PROMPT, 0.5)[0].kept.tolist()
    )


def test_each_frame_has_its_own_patches(both_video_bundle: Path, folder: Path, tmp_path: Path) -> None:
    """With an encoder that prunes, a frame is drawn as a video that has no other frame is."""
    result = call(both_video_bundle, folder, tmp_path / "a.png", "--ratio", "0.5", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    pipeline, kept = Pipeline.load(both_video_bundle), []
    for frame, picture in enumerate(PICTURES):
        picture.save(tmp_path / "one.png")
        alone = json.loads(call(both_video_bundle, tmp_path / "one.png", tmp_path / f"{frame}.png", "--json").stdout)
        assert found["encoder"][frame] == alone["encoder"][0]
        assert found["unseen_patches"][frame] == alone["unseen_patches"][0] == []
        seen = explain(pipeline, picture, PROMPT, 0.5)
        np.testing.assert_allclose(found["kept_attention_to_patches"][frame], seen.heat(seen.kept).ravel(), atol=1e-5)
        assert found["kept_attention_to_cls"][frame] == pytest.approx(seen.cls_share(seen.kept), abs=1e-5)
        kept.append(found["encoder"][frame]["layers"][0]["kept_patches"])
        # Queries read what the encoder left, which is all that its own output says.
        encoded = pipeline.encode(pipeline.preprocess([picture]), [PROMPT])
        assert kept[-1] == sorted(to_host(encoded["kept_positions"])[0].tolist())
    assert len({tuple(patches) for patches in kept}) == 3
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (WIDTH, 3 * height_of(explain(pipeline, PICTURES[0], PROMPT).encoder))
    said = call(both_video_bundle, folder, tmp_path / "b.png").stdout.splitlines()
    assert said[0] == f"of each frame, {len(kept[0])} of 49 patches leave the encoder, which does 85% of its work"
    assert said[1].startswith("all 72 query tokens of 3 frames: ")
