"""Trains the demo model from scratch: `python -m catp.export.demo.train -o FOLDER` (39 minutes on two busy cores).

Three phases, because answers alone collapse the Q-Former (all query embeddings become equal, and then
every way of choosing among them is the same):

1. Auxiliary: each query describes one cell of the grid through a linear head that is thrown away later.
   Three or four queries share a cell, so there is redundancy to prune, as in the real model.
2. Joint: answers' cross-entropy plus a weak auxiliary loss.
3. Language model alone, with vision and Q-Former frozen: random query dropout, half the batches with
   original and half with compact positions, so that the model tolerates pruning in both position modes.

Attention maps are never supervised: what a voting method makes of them is its own merit.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from catp.export.demo.batches import Batches, stream
from catp.export.demo.card import model_card
from catp.export.demo.losses import (
    CellReader,
    answer_logits,
    answer_loss,
    describe_images,
    exact_match,
    query_spread,
    random_kept,
)
from catp.export.demo.untrained import QUERIES, make_model, make_processor


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that decides the result, recorded in the model card."""

    seed: int = 0
    images_per_batch: int = 64
    questions_per_image: int = 5
    auxiliary_steps: int = 500
    joint_steps: int = 1200
    language_steps: int = 500
    learning_rate: float = 1.5e-3
    language_learning_rate: float = 5e-4
    auxiliary_weight: float = 0.3


def train(recipe: TrainingRecipe, processor: Blip2Processor) -> tuple[Blip2ForConditionalGeneration, dict[str, float]]:
    torch.manual_seed(recipe.seed)
    model = make_model(processor)
    reader = CellReader(model.query_tokens.shape[-1])
    size = (recipe.images_per_batch, recipe.questions_per_image, recipe.seed)
    held_out = Batches(processor, "held-out", 4, *size)
    rng = np.random.default_rng(recipe.seed)
    everything = torch.ones(recipe.images_per_batch, QUERIES, dtype=torch.bool)
    started = time.monotonic()

    first_two = recipe.auxiliary_steps + recipe.joint_steps
    batches = stream(Batches(processor, "train", first_two + recipe.language_steps, *size))
    parameters = [*model.parameters(), *reader.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, first_two, pct_start=0.05)
    for step in range(first_two):
        batch = next(batches)
        queries = describe_images(model, batch.pixel_values)
        auxiliary = reader.loss(queries, batch.cells)
        loss = auxiliary
        if step >= recipe.auxiliary_steps:
            answers = answer_loss(answer_logits(model, queries, batch.text, everything, False), batch.labels)
            loss = answers + recipe.auxiliary_weight * auxiliary
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            spread = query_spread(model, held_out)
            print(
                f"step {step + 1:5d}  auxiliary {auxiliary.item():.4f}  loss {loss.item():.4f}  spread {spread:.3f}  "
                f"{time.monotonic() - started:.0f} s",
                flush=True,
            )

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("language_model"))
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.language_learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.language_learning_rate, recipe.language_steps, pct_start=0.05
    )
    for step in range(recipe.language_steps):
        batch = next(batches)
        with torch.no_grad():
            queries = describe_images(model, batch.pixel_values)
        kept = random_kept(recipe.images_per_batch, rng)
        loss = answer_loss(answer_logits(model, queries, batch.text, kept, compact=bool(step % 2)), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(
                f"language step {step + 1:5d}  loss {loss.item():.4f}  {time.monotonic() - started:.0f} s", flush=True
            )

    model.requires_grad_(True).eval()
    model.half().float()  # measure what is shipped: the checkpoint is stored in float16
    report = {
        "questions": len(held_out) * recipe.images_per_batch * recipe.questions_per_image,
        "exact_match": exact_match(model, held_out),
        "exact_match_random_16_of_32_original": exact_match(model, held_out, drop=16),
        "exact_match_random_16_of_32_compact": exact_match(model, held_out, drop=16, compact=True),
        "query_spread": query_spread(model, held_out),
        "training_seconds": round(time.monotonic() - started),
    }
    return model, report


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the checkpoint.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    scale: Annotated[float, typer.Option(help="Multiplies every phase's steps (small values: a smoke test).")] = 1.0,
) -> None:
    """Train the demo model and write it as an ordinary Hugging Face checkpoint folder."""
    base = TrainingRecipe()
    recipe = TrainingRecipe(
        seed=seed,
        auxiliary_steps=round(base.auxiliary_steps * scale),
        joint_steps=round(base.joint_steps * scale),
        language_steps=round(base.language_steps * scale),
    )
    processor = make_processor()
    model, report = train(recipe, processor)
    model.half().save_pretrained(output)
    processor.save_pretrained(output)
    processor.image_processor.save_pretrained(output)
    (output / "training.json").write_text(json.dumps({"recipe": asdict(recipe), "result": report}, indent=2) + "\n")
    (output / "README.md").write_text(model_card(asdict(recipe), report))
    print(json.dumps(report))


if __name__ == "__main__":
    typer.run(main)
