"""The second demo: it knows what its card says, its encoder is the small BLIP's, its training goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Blip2ForConditionalGeneration

from catp.export.checkpoints.taught import read_taught
from catp.export.demo.batches import IGNORE, stream
from catp.export.demo.fine import CHECKPOINT
from catp.export.demo.fine import train as training
from catp.export.demo.fine.batches import WiderBatches
from catp.export.demo.fine.card import model_card
from catp.export.demo.fine.evaluation import exact_match_easy
from catp.export.demo.fine.train import FineRecipe, make_model, make_processor, train
from catp.export.demo.losses import exact_match, query_spread
from catp.export.demo.vqa import DENSE

RECORD = json.loads((CHECKPOINT / "training.json").read_text())


@pytest.fixture(scope="module")
def model() -> Any:
    return Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.float32).eval()


def test_it_answers_as_its_card_says(model: Any) -> None:
    held_out = WiderBatches(make_processor(), "held-out", 1, 48, 6, 0)  # the first of four that were measured
    assert exact_match(model, held_out) == pytest.approx(RECORD["result"]["exact_match"], abs=0.015)
    assert query_spread(model, held_out) == pytest.approx(RECORD["result"]["query_spread"], abs=0.01)
    found = exact_match_easy(model, make_processor(), most=60)
    assert found["easy_vqa_questions"] > 300
    assert found["easy_vqa_exact_match"] == pytest.approx(RECORD["result"]["easy_vqa_exact_match"], abs=0.04)


def test_its_card_is_written_from_its_record() -> None:
    assert RECORD["recipe"] == asdict(FineRecipe())
    assert (CHECKPOINT / "README.md").read_text() == model_card(RECORD["recipe"], RECORD["result"])
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) < 8_000_000


def test_its_vision_encoder_is_the_dense_small_blips() -> None:
    own, other = (load_file(folder / "model.safetensors") for folder in (CHECKPOINT, DENSE))
    names = [name for name in own if name.startswith("vision_model.")]
    assert len(names) > 70 and all(torch.equal(own[name], other[name]) for name in names)


def test_it_has_a_scorer_for_every_layer() -> None:
    found = read_taught(str(CHECKPOINT), 6, 128)
    assert found is not None and found.record.pictures == 300 and min(found.record.explained) > 0.3


def test_one_picture_in_three_is_easy_vqas_and_only_in_training() -> None:
    processor = make_processor()
    batches = WiderBatches(processor, "train", 5, 12, 2, 3)
    batch = batches[1]
    assert (batch.cells == IGNORE).all(2).all(1).tolist() == [False] * 8 + [True] * 4
    assert not (WiderBatches(processor, "held-out", 5, 12, 2, 3)[1].cells == IGNORE).any()
    again = WiderBatches(processor, "train", 5, 12, 2, 3)[1]
    assert all(torch.equal(getattr(batch, name), getattr(again, name)) for name in ("pixel_values", "text", "labels"))
    later = WiderBatches(processor, "train", 5, 12, 2, 3, first=1)
    (first,) = islice(stream(later), 1)
    assert torch.equal(first.pixel_values, batch.pixel_values)


def test_it_begins_as_other_models_parts() -> None:
    model = make_model()
    assert model.vision_model.embeddings.position_embedding.shape[1] == 145
    assert not any(p.requires_grad for p in model.vision_model.parameters())
    assert all(p.requires_grad for p in model.qformer.parameters())


@pytest.mark.heavy
def test_training_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    monkeypatch.setattr(training, "exact_match_easy", lambda *_: {})
    recipe = replace(FineRecipe(), images_per_batch=6, questions_per_image=2, joint_steps=4, language_steps=3)
    whole, _ = train(recipe, make_processor(), tmp_path / "whole")
    steps = iter(range(100))
    step = training.Phase.step

    def stop(self: training.Phase, loss: torch.Tensor) -> None:
        if next(steps) == 3:
            raise KeyboardInterrupt
        step(self, loss)

    with monkeypatch.context() as patch:
        patch.setattr(training.Phase, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, make_processor(), tmp_path / "cut")
    again, _ = train(recipe, make_processor(), tmp_path / "cut")
    for (name, one), (_, other) in zip(whole.named_parameters(), again.named_parameters()):
        np.testing.assert_allclose(one.detach().numpy(), other.detach().numpy(), atol=1e-6, err_msg=name)
