"""The demo model is genuinely trained, and the ways in which training failed before did not happen."""

import json

import numpy as np
import pytest
from transformers import AutoProcessor, Blip2ForConditionalGeneration

from catp.calibration.accuracy.evaluation import evaluate
from catp.calibration.accuracy.settings import Grid
from catp.calibration.data import open_data
from catp.export.checkpoints.loading import Checkpoint
from catp.export.demo import CHECKPOINT, scenes
from catp.export.demo.train import TrainingRecipe, train
from catp.export.demo.untrained import make_processor
from catp.export.verification.reference import Reference
from catp.runtime import Pipeline


def test_it_is_an_ordinary_checkpoint_of_at_most_ten_megabytes() -> None:
    assert sum(f.stat().st_size for f in CHECKPOINT.iterdir()) <= 10_000_000
    model = Blip2ForConditionalGeneration.from_pretrained(CHECKPOINT)
    assert model.config.text_config.model_type == "opt"
    assert model.config.num_query_tokens == 32
    layers = model.qformer.encoder.layer
    assert sum(layer.has_cross_attention for layer in layers) >= 2
    processor = AutoProcessor.from_pretrained(CHECKPOINT, backend="pil")
    assert processor.num_query_tokens == 32


def test_it_answers_held_out_questions(pipeline: Pipeline) -> None:
    grid = Grid(("catp",), (0.0,), ("original",))
    (score,) = evaluate(pipeline, open_data("demo"), grid, seed=31, batch_size=16).scores
    assert score.questions == 1000
    assert score.accuracy >= 0.97


def test_its_queries_stay_distinct(demo_checkpoint: Checkpoint) -> None:
    reference = Reference(demo_checkpoint)
    images = [e.image for e in scenes.examples(8, seed=1)]
    embeds, evidence = reference.query_embeds(reference.image_embeds(reference.pixel_values(images)).embeds)
    maps = [layer.numpy() for layer in evidence.cross_attention if layer is not None]
    queries = embeds.numpy()
    spread = np.linalg.norm(queries - queries.mean(1, keepdims=True)) / np.linalg.norm(queries)
    assert spread >= 0.5
    peak = np.mean([m.max(-1).mean() for m in maps])
    assert peak > 3 / maps[0].shape[-1]  # attention is peaked: the votes do not hang on float noise


def test_the_card_says_how_it_was_made() -> None:
    card = (CHECKPOINT / "README.md").read_text()
    record = json.loads((CHECKPOINT / "training.json").read_text())
    assert "python -m catp.export.demo.train" in card
    assert "not supervised" in card
    assert record["recipe"]["seed"] == TrainingRecipe().seed
    for phase in ("auxiliary_steps", "joint_steps", "language_steps"):
        assert f"{record['recipe'][phase]:,}" in card


@pytest.mark.filterwarnings("ignore")
def test_the_training_script_still_trains() -> None:
    recipe = TrainingRecipe(images_per_batch=4, auxiliary_steps=2, joint_steps=2, language_steps=2)
    model, report = train(recipe, make_processor())
    assert model.config.num_query_tokens == 32
    assert 0 <= report["exact_match"] <= 1 and report["query_spread"] > 0
