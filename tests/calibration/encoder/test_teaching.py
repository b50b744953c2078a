"""A scorer that is taught: sums against a plain fit, hiding against taking away, and a run that is interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from catp.calibration.commands.calibrate import app
from catp.calibration.data import open_data
from catp.calibration.encoder import teaching
from catp.calibration.encoder.teaching import HELD_BACK, RIDGES, Lessons, teach
from catp.export.checkpoints.loading import Checkpoint, load_checkpoint
from catp.export.checkpoints.taught import TaughtScorer, read_taught, write_taught
from catp.export.demo import CHECKPOINT
from catp.export.demo.vqa import CHECKPOINT as SMALL_BLIP
from catp.export.encoder_pruning.rules.taught import normalised
from catp.export.verification.reference import Reference
from catp.runtime.errors import UsageError

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(str(CHECKPOINT))


def run(
    checkpoint: Checkpoint, state: Path, pictures: int = 20, advance: Callable[[int], None] = lambda _: None
) -> TaughtScorer:
    return teach(checkpoint, open_data("demo"), "demo", pictures, 4, 7, state, advance)


def test_a_fit_from_sums_is_a_fit_of_all_examples() -> None:
    rng = np.random.default_rng(0)
    lessons = Lessons.none(2, 3)
    features, targets = rng.standard_normal((10, 2, 6, 3)), rng.standard_normal((10, 6))
    targets += features[:, 1, :, 0] * 2 + 5
    for row in range(10):
        lessons.add(features[row], targets[row])
    back = np.arange(10) % HELD_BACK == HELD_BACK - 1
    for layer in range(2):
        best = -np.inf
        for ridge in RIDGES:
            # By augmented least squares: rows of a ridge, and a constant that none of them holds.
            x = np.concatenate([features[~back, layer].reshape(-1, 3), np.sqrt(ridge * 48) * np.eye(3)])
            ones = np.concatenate([np.ones(48), np.zeros(3)])[:, None]
            y = np.concatenate([targets[~back].ravel(), np.zeros(3)])
            weights = np.linalg.lstsq(np.concatenate([x, ones], 1), y, rcond=None)[0]
            wanted = targets[back].ravel()
            left = wanted - features[back, layer].reshape(-1, 3) @ weights[:3] - weights[3]
            share = 1 - (left**2).sum() / ((wanted - wanted.mean()) ** 2).sum()
            if share > best:
                best, chosen = share, weights
        found, explained = lessons.fit(layer)
        np.testing.assert_allclose(found, chosen, rtol=1e-9, atol=1e-9)
        assert explained == pytest.approx(best)
    assert lessons.fit(1)[1] > 0.5 > lessons.fit(0)[1]  # only that layer's features tell the targets


def test_a_hidden_patch_is_one_that_is_not_there(checkpoint: Checkpoint) -> None:
    """Masked in the Q-Former's attention, as in the lesson, or taken away before it: the same change."""
    model, image = checkpoint.model, next(iter(open_data("demo"))).image
    pixels = Reference(checkpoint).pixel_values([image])
    features, targets = teaching._Classroom(model, 3).lesson(pixels, None, np.random.default_rng(4))
    rng = np.random.default_rng(4)
    embeds = model.vision_model(pixels).last_hidden_state
    hidden = rng.integers(36, size=3)
    orders = rng.random((3, 36)).argsort(1)
    for row, patch in enumerate(hidden):
        context = [p for p in range(36) if orders[row, p] < round(0.6 * 36)]
        queries = []
        for shown in ({*context, patch}, {*context} - {patch}):
            tokens = embeds[:, [0, *(1 + p for p in sorted(shown))]]
            queries.append(
                model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=tokens).last_hidden_state
            )
        moved = (queries[0] - queries[1]).norm()
        assert targets[row] == pytest.approx(float(moved.log()), rel=1e-4)
    # Features are of the patch itself, between attention and MLP.
    states = []
    hook = model.vision_model.encoder.layers[2].layer_norm2.register_forward_pre_hook(lambda _, x: states.append(x[0]))
    model.vision_model(pixels)
    hook.remove()
    np.testing.assert_allclose(features[2], normalised(states[0][0, 1 + hidden]).detach().numpy(), atol=1e-6)


@pytest.mark.heavy
def test_an_interrupted_run_goes_on_to_the_same_scorer(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teaching, "SAVE_EVERY", 4)
    whole, seen = run(checkpoint, tmp_path / "one"), []

    def stop(done: int) -> None:
        seen.append(done)
        if len(seen) == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint, tmp_path / "two", advance=stop)
    seen.clear()
    again = run(checkpoint, tmp_path / "two", advance=seen.append)
    assert seen[0] == 8 and sum(seen) == 20  # two saves of four were not done again
    assert torch.equal(again.scorers, whole.scorers) and again.record == whole.record
    assert not list(tmp_path.iterdir())  # its state is gone
    (tmp_path / "two").write_bytes(b"PK\x03\x04 broken")
    assert torch.equal(run(checkpoint, tmp_path / "two").scorers, whole.scorers)


def test_it_learns(checkpoint: Checkpoint, tmp_path: Path) -> None:
    record = run(checkpoint, tmp_path / "state", pictures=60).record
    assert record.pictures == 60 and len(record.explained) == 4 and min(record.explained) > 0.2


def test_the_command_writes_what_the_export_reads(tmp_path: Path) -> None:
    folder = shutil.copytree(CHECKPOINT, tmp_path / "checkpoint")
    words = ["scorer", str(folder), "--pictures", "12", "--toggles", "2", "--json"]
    result = RUNNER.invoke(app, words)
    assert result.exit_code == 0, result.output
    found = read_taught(str(folder), 4, 128)
    assert found is not None and found.scorers.shape == (4, 128)
    assert json.loads(result.stdout.splitlines()[-1]) == json.loads(found.record.model_dump_json())
    assert found.record.pictures == 12 and found.record.data == "demo"
    assert {path.name for path in folder.iterdir()} - {path.name for path in CHECKPOINT.iterdir()} == {
        "taught.safetensors",
        "taught.json",
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nobody/nothing"], 2, "no local folder; say with --output where the scorer is to be written"),
        ([str(CHECKPOINT), "-o", "missing"], 2, "--output missing: no such folder"),
        ([str(CHECKPOINT), "-o", "/proc"], 2, "--output /proc: nothing can be written there"),
        ([str(CHECKPOINT), "--data", "nothing"], 2, "no such data set"),
        ([str(SMALL_BLIP), "-o", "."], 2, "has no Q-Former to hide patches from; accepted: BLIP-2, InstructBLIP"),
    ],
)
def test_mistakes(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, ["scorer", *arguments])
    assert result.exit_code == code and message in " ".join(result.output.split())
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_no_checkpoint(demo_bundle: Path) -> None:
    result = RUNNER.invoke(app, ["scorer", str(demo_bundle)])
    assert result.exit_code == 2 and "give the checkpoint that it was exported from" in " ".join(result.output.split())


def test_pictures_that_are_too_few(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"3 pictures could be read; give at least 10"):
        teach(checkpoint, islice(open_data("demo"), 3), "demo", 300, 4, 7, tmp_path / "state", lambda _: None)


def test_files_of_another_encoder_or_half_of_them(checkpoint: Checkpoint, tmp_path: Path) -> None:
    assert read_taught(str(tmp_path), 4, 128) is None
    found = run(checkpoint, tmp_path / "state", pictures=10)
    write_taught(found, tmp_path)
    again = read_taught(str(tmp_path), 4, 128)
    assert again is not None and torch.equal(again.scorers, found.scorers) and again.record == found.record
    with pytest.raises(UsageError, match=r"is \[4, 128\], and the vision encoder has 5 layers of 128"):
        read_taught(str(tmp_path), 5, 128)
    (tmp_path / "taught.json").write_text('{"data": 1')
    with pytest.raises(UsageError, match=r"taught.json is no record of a scorer; make it again"):
        read_taught(str(tmp_path), 4, 128)
    (tmp_path / "taught.json").unlink()
    with pytest.raises(UsageError, match="belong together, and one is missing"):
        read_taught(str(tmp_path), 4, 128)
