"""Trains the second small BLIP-2: `python -m catp.export.demo.fine.train -o FOLDER`.

As BLIP-2 was: in front stands a vision encoder that another task trained (the small dense BLIP's, of 144 patches), and
stays as it is. Query tokens, Q-Former, projection and language model begin as the first demo's.

1. Answers, plus the loss of the first demo's auxiliary head, which keeps queries apart.
2. The language model alone, with random queries dropped, half of the batches with original and half with compact
   positions.

Attention is not supervised, and nothing is pruned inside the encoder: what pruning costs is for rules to show.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2VisionConfig,
    BlipForQuestionAnswering,
)

from catp.export.demo import CHECKPOINT as FIRST
from catp.export.demo.batches import stream
from catp.export.demo.fine.batches import WiderBatches
from catp.export.demo.fine.card import model_card
from catp.export.demo.fine.evaluation import exact_match_easy
from catp.export.demo.losses import (
    CellReader,
    answer_logits,
    answer_loss,
    describe_images,
    exact_match,
    query_spread,
    random_kept,
)
from catp.export.demo.untrained import QUERIES
from catp.export.demo.vqa import DENSE

SAVE_EVERY = 100
"""Steps between states from which an interrupted run goes on."""


@dataclass(frozen=True)
class FineRecipe:
    """Everything that decides the result, recorded in the model card."""

    seed: int = 0
    images_per_batch: int = 48
    questions_per_image: int = 6
    joint_steps: int = 800
    joint_schedule: int = 1000  # steps that the learning rate is planned for: hardly anything was left to learn at 800
    language_steps: int = 250
    learning_rate: float = 1e-3
    language_learning_rate: float = 5e-4
    auxiliary_weight: float = 0.3


def make_processor() -> Blip2Processor:
    """The first demo's: the same size of pictures, the same tokenizer."""
    found: Any = Blip2Processor.from_pretrained(FIRST, backend="pil")
    return found


def make_model() -> Blip2ForConditionalGeneration:
    """The dense small BLIP's vision encoder before the first demo's other parts, in float32."""
    first: Any = Blip2ForConditionalGeneration.from_pretrained(FIRST, dtype=torch.float32)
    blip: Any = BlipForQuestionAnswering.from_pretrained(DENSE, dtype=torch.float32)
    seen: Any = blip.config.vision_config
    vision = Blip2VisionConfig(
        hidden_size=seen.hidden_size, intermediate_size=seen.intermediate_size,
        num_hidden_layers=seen.num_hidden_layers, num_attention_heads=seen.num_attention_heads,
        image_size=seen.image_size, patch_size=seen.patch_size, layer_norm_eps=seen.layer_norm_eps,
    )  # fmt: skip
    config = Blip2Config(**{**first.config.to_dict(), "vision_config": vision.to_dict()})
    model = Blip2ForConditionalGeneration(config)
    weights = {name: value for name, value in first.state_dict().items() if not name.startswith("vision_model.")}
    weights |= {f"vision_model.{name}": value for name, value in blip.vision_model.state_dict().items()}
    model.load_state_dict(weights)
    model.generation_config = first.generation_config
    model.vision_model.requires_grad_(False)
    return model


class Phase:
    """Steps with one optimizer over some of the parameters; its state goes to disk and comes back."""

    def __init__(self, modules: Iterable[torch.nn.Module], rate: float, steps: int, file: Path) -> None:
        self.modules = torch.nn.ModuleList(modules)
        self.parameters = [p for p in self.modules.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, max(steps, 2), pct_start=0.05)
        self.file, self.done, self.seconds = file, 0, 0.0
        if file.is_file():
            state = torch.load(file, weights_only=True)
            self.modules.load_state_dict(state["modules"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.done, self.seconds = state["done"], state["seconds"]
        self._since = time.monotonic()

    def step(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.done += 1

    def save(self) -> None:
        now = time.monotonic()
        self.seconds, self._since = self.seconds + now - self._since, now
        state = {
            "modules": self.modules.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "done": self.done,
            "seconds": self.seconds,
        }
        partial = self.file.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.file)


def train(
    recipe: FineRecipe, processor: Blip2Processor, work: Path
) -> tuple[Blip2ForConditionalGeneration, dict[str, float]]:
    """Args: `work`: folder for states from which an interrupted run goes on."""
    torch.manual_seed(recipe.seed)
    work.mkdir(parents=True, exist_ok=True)
    model = make_model()
    reader = CellReader(model.query_tokens.shape[-1])
    size = (recipe.images_per_batch, recipe.questions_per_image, recipe.seed)
    held_out = WiderBatches(processor, "held-out", 4, *size)
    everything = torch.ones(recipe.images_per_batch, QUERIES, dtype=torch.bool)

    joint = Phase([model, reader], recipe.learning_rate, recipe.joint_schedule, work / "joint.pt")
    for batch in stream(WiderBatches(processor, "train", recipe.joint_steps, *size, first=joint.done)):
        queries = describe_images(model, batch.pixel_values)
        auxiliary = reader.loss(queries, batch.cells)
        answers = answer_loss(answer_logits(model, queries, batch.text, everything, False), batch.labels)
        joint.step(answers + recipe.auxiliary_weight * auxiliary)
        _report(joint, recipe.joint_steps, auxiliary=auxiliary, answers=answers)

    model.requires_grad_(False)
    model.language_model.requires_grad_(True)
    language = Phase([model], recipe.language_learning_rate, recipe.language_steps, work / "language.pt")
    count = recipe.joint_steps + recipe.language_steps
    first = recipe.joint_steps + language.done
    for batch in stream(WiderBatches(processor, "train", count, *size, first=first)):
        with torch.no_grad():
            queries = describe_images(model, batch.pixel_values)
        step = language.done
        kept = random_kept(recipe.images_per_batch, np.random.default_rng([recipe.seed, step]))
        answers = answer_loss(answer_logits(model, queries, batch.text, kept, compact=bool(step % 2)), batch.labels)
        language.step(answers)
        _report(language, recipe.language_steps, answers=answers)

    model.requires_grad_(True).eval()
    model.half().float()  # measure what is shipped: the checkpoint is stored in float16
    report = {
        "questions": len(held_out) * recipe.images_per_batch * recipe.questions_per_image,
        "exact_match": exact_match(model, held_out),
        "exact_match_random_16_of_32_original": exact_match(model, held_out, drop=16),
        "exact_match_random_16_of_32_compact": exact_match(model, held_out, drop=16, compact=True),
        "query_spread": query_spread(model, held_out),
        **exact_match_easy(model, processor),
        "training_seconds": round(joint.seconds + language.seconds),
    }
    return model, report


def _report(phase: Phase, steps: int, **losses: torch.Tensor) -> None:
    if phase.done % SAVE_EVERY == 0 or phase.done == steps:
        phase.save()
        values = "  ".join(f"{name} {loss.item():.4f}" for name, loss in losses.items())
        print(f"{phase.file.stem} {phase.done:5d}  {values}  {phase.seconds:.0f} s", flush=True)


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the checkpoint.")],
    seed: Annotated[int, typer.Option(help="Seed of new weights and data.")] = 0,
    work: Annotated[Path | None, typer.Option(help="Folder for states from which an interrupted run goes on.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train the second small BLIP-2 and write it as an ordinary Hugging Face checkpoint folder."""
    torch.set_num_threads(threads)
    recipe, processor = FineRecipe(seed=seed), make_processor()
    model, report = train(recipe, processor, work or output / "work")
    model.half().save_pretrained(output)
    processor.save_pretrained(output)
    processor.image_processor.save_pretrained(output)
    (output / "training.json").write_text(json.dumps({"recipe": asdict(recipe), "result": report}, indent=2) + "\n")
    (output / "README.md").write_text(model_card(asdict(recipe), report))
    print(json.dumps(report))


if __name__ == "__main__":
    typer.run(main)
