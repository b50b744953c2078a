"""The small BLIP for two pictures is genuinely trained, and is what its card says; its recipe runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nlvr_reference import truth_logits

from catp.export.checkpoints.loading import load_checkpoint
from catp.export.demo.nlvr import CHECKPOINT
from catp.export.demo.nlvr.batches import make_batch, pixel_values
from catp.export.demo.nlvr.pool import Pool
from catp.export.demo.nlvr.train import NlvrRecipe, Training, logits, measure, write
from catp.runtime.bundle.image_spec import ImageSpec

pytestmark = pytest.mark.heavy

MARGIN = 0.07
"""By how much two hundred statements may fall below what was recorded on more of them."""

RECORD = json.loads((CHECKPOINT / "training.json").read_text())


def test_statements_are_judged_as_well_as_was_recorded() -> None:
    loaded = load_checkpoint(str(CHECKPOINT))
    spec = ImageSpec.from_preprocessor_config(loaded.image_processor.to_dict())
    pool = Pool(400, 77, "held-out")
    batch = make_batch(pool, loaded.tokenizer, 200, 1)
    with torch.no_grad():
        places = torch.cat([batch.first, batch.second])
        found = loaded.model(pixel_values(pool, places, spec), batch.ids, batch.mask)
    right = float((found.argmax(-1) == batch.truth).float().mean())
    recorded = RECORD["result"]["held-out pairs"]["accuracy"]
    assert recorded > 0.85 and right >= recorded - MARGIN
    assert f"{recorded:.1%} right" in (CHECKPOINT / "README.md").read_text()


def test_its_logits_are_those_of_the_official_formulas() -> None:
    model = load_checkpoint(str(CHECKPOINT)).model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 40, (2, 8), generator=generator)
    images = torch.randn(2, 2, 10, 128, generator=generator)
    with torch.no_grad():
        found = model.judge(ids, torch.ones_like(ids), *images).double().numpy()
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    first, second = images.double().numpy()
    eps = model.config.text_config.layer_norm_eps
    wanted = truth_logits(weights, ids.numpy(), torch.ones_like(ids).numpy(), first, second, 4, eps)
    assert abs(found - wanted).max() <= 1e-4 * abs(wanted).max()


def test_the_recorded_recipe_is_the_code() -> None:
    recipe = NlvrRecipe(seed=RECORD["recipe"]["seed"])
    assert RECORD["recipe"] == vars(recipe)
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 6e6


def test_the_recipe_runs_and_goes_on_where_it_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = NlvrRecipe(pictures=30, pairs_per_batch=2, statements_per_pair=3, statement_steps=2, joint_steps=1)
    training = Training(recipe, tmp_path / "work")
    before = training.model.text_encoder.encoder.layer[0].attention.self.query.weight.detach().clone()
    training.run()
    assert not torch.equal(before, training.model.text_encoder.encoder.layer[0].attention.self.query.weight)
    again = Training(recipe, tmp_path / "work")
    again.run()  # nothing is left to do
    assert all(torch.equal(a, b) for a, b in zip(training.model.parameters(), again.model.parameters()))
    score = measure(again, 20)
    write(again, tmp_path / "checkpoint", score)
    loaded = load_checkpoint(str(tmp_path / "checkpoint"))
    batch = make_batch(Pool(10, 1, "train"), again.tokenizer, 2, 3)
    images = torch.randn(2, 2, 145, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # training shares what it computes of a picture between its statements
        shared, _ = logits(loaded.model, batch, *images)
        apart = loaded.model.judge(batch.ids, batch.mask, *(image.repeat_interleave(3, 0) for image in images))
    torch.testing.assert_close(shared, apart, atol=1e-4, rtol=0)
