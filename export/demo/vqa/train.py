"""Trains the small BLIP, dense and with MADTP: `python -m catp.export.demo.vqa.train -o FOLDER`.

Three phases make a dense base, because answers alone do not start the vision encoder:

1. Patches: each patch names row, column, colour and shape of its cell through a linear head that is thrown away later.
   Twice more with smaller batches and larger steps, the second time with crowded scenes whose cells the patches also
   paint, until shapes are told too.
2. Questions: the text parts learn to answer behind the frozen vision encoder.
3. Everything: answers, plus a weak loss of the first kind.

From it two models go on, with the same data for the same number of steps: one dense, one with MADTP. Towards the end
two pictures in three are easy-vqa's, whose yes-or-no questions, negated ones among them, are learnt last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import save_file
from transformers import BlipForQuestionAnswering, BlipProcessor, GenerationConfig

from catp.export.demo.vqa.batches import VqaBatch, VqaBatches, easy_pictures, stream
from catp.export.demo.vqa.card import model_card
from catp.export.demo.vqa.costs import vision_macs
from catp.export.demo.vqa.evaluation import easy_test, held_out_scenes, score
from catp.export.demo.vqa.forward import image_embeds
from catp.export.demo.vqa.losses import (
    CellPainter,
    PatchReader,
    alignment_loss,
    answer_loss,
    batch_logits,
    right_answers,
)
from catp.export.demo.vqa.pruning import TOKENS, TokenPruning
from catp.export.demo.vqa.untrained import DEC, PAD, SEP, WIDTH, make_model, make_processor

READING = ("patches", "shapes", "crowds")
"""Phases that train the vision encoder by what its patches show."""


@dataclass(frozen=True)
class VqaRecipe:
    """Everything that decides the result, recorded in the model cards."""

    seed: int = 0
    images_per_batch: int = 32
    questions_per_image: int = 12
    patch_steps: int = 350
    shape_steps: int = 600
    crowd_steps: int = 700
    question_steps: int = 450
    joint_steps: int = 500
    branch_steps: int = 200
    final_steps: int = 360
    patch_learning_rate: float = 1e-3
    shape_learning_rate: float = 1.5e-3
    question_learning_rate: float = 7e-4
    joint_learning_rate: float = 5e-4
    branch_learning_rate: float = 4e-4
    final_learning_rate: float = 3e-4
    dictionary_learning_rate: float = 1e-3
    auxiliary_weight: float = 0.3
    alignment_weight: float = 0.1
    first_temperature: float = 0.1
    target: float = 0.5  # share of the vision encoder's operations that shall remain
    target_after: float = 0.6  # share of the branch's steps within which the target comes down to that


class Training:
    """One model on its way, kept on disk so that an interrupted run goes on where it stopped."""

    def __init__(self, recipe: VqaRecipe, processor: BlipProcessor, folder: Path, threads: int) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(threads)
        self.recipe, self.processor, self.folder = recipe, processor, folder
        self.model = make_model(len(processor.tokenizer))
        self.reader = PatchReader(WIDTH)
        self.painter = CellPainter(WIDTH)
        self.space_dict = torch.nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.1)
        self.temperature = recipe.first_temperature
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "reader": self.reader.state_dict(),
            "painter": self.painter.state_dict(),
            "space_dict": self.space_dict.data,
            "temperature": self.temperature,
            "seconds": self.seconds,
        }

    def save(self, name: str, step: int, optimizer: torch.optim.Optimizer | None) -> None:
        extra = {"step": step, "optimizer": optimizer.state_dict() if optimizer else None}
        torch.save(self._state() | extra, self.folder / f"{name}.new")
        (self.folder / f"{name}.new").replace(self.folder / f"{name}.pt")

    def load(self, name: str) -> dict[str, Any] | None:
        """The state that `save` wrote under this name, its weights put back; None where there is none."""
        file = self.folder / f"{name}.pt"
        if not file.exists():
            return None
        state: dict[str, Any] = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.reader.load_state_dict(state["reader"])
        self.painter.load_state_dict(state["painter"])
        self.space_dict.data.copy_(state["space_dict"])
        self.temperature, self.seconds = state["temperature"], state["seconds"]
        return state

    def phase(self, name: str, before: str | None) -> None:
        """One phase, from the end of the phase before it; nothing is done where it has ended already."""
        recipe = self.recipe
        steps = {
            "patches": recipe.patch_steps,
            "shapes": recipe.shape_steps,
            "crowds": recipe.crowd_steps,
            "questions": recipe.question_steps,
            "everything": recipe.joint_steps,
            "dense": recipe.branch_steps,
            "madtp": recipe.branch_steps,
            "dense-final": recipe.final_steps,
            "madtp-final": recipe.final_steps,
        }[name]
        state = self.load(name)
        if state is None and before is not None:
            self.load(before)
        done = state["step"] if state else 0
        if done >= steps:
            return
        optimizer = self._optimizer(name)
        if state and state["optimizer"]:
            optimizer.load_state_dict(state["optimizer"])
        batches = self._batches(name, done, steps)
        for step in range(done, steps):
            started = time.monotonic()
            batch = next(batches)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _rate(name, step, steps)
            loss, said = self._loss(name, batch, step / max(1, steps))
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], 1.0)
            optimizer.step()
            self.seconds += time.monotonic() - started
            if (step + 1) % 50 == 0:
                print(f"{name} {step + 1:5d}  loss {loss.item():.4f}  {said}  {self.seconds:.0f} s", flush=True)
            if (step + 1) % 100 == 0 or step + 1 == steps:
                self.save(name, step + 1, optimizer)

    def _optimizer(self, name: str) -> torch.optim.Optimizer:
        recipe, model = self.recipe, self.model
        vision = [*model.vision_model.parameters()]
        text = [*model.text_encoder.parameters(), *{id(p): p for p in model.text_decoder.parameters()}.values()]
        parameters, peak = {
            "patches": ([*vision, *self.reader.parameters()], recipe.patch_learning_rate),
            "shapes": ([*vision, *self.reader.parameters()], recipe.shape_learning_rate),
            "crowds": ([*vision, *self.reader.parameters(), *self.painter.parameters()], recipe.shape_learning_rate),
            "questions": (text, recipe.question_learning_rate),
            "everything": (
                [*vision, *text, *self.reader.parameters(), *self.painter.parameters()],
                recipe.joint_learning_rate,
            ),
            "dense": ([*vision, *text], recipe.branch_learning_rate),
            "madtp": ([*vision, *text], recipe.branch_learning_rate),
            "dense-final": ([*vision, *text], recipe.final_learning_rate),
            "madtp-final": ([*vision, *text], recipe.final_learning_rate),
        }[name]
        groups = [{"params": parameters, "peak": peak}]
        if name.startswith("madtp"):
            groups.append({"params": [self.space_dict], "peak": recipe.dictionary_learning_rate})
        return torch.optim.AdamW(groups, lr=peak, weight_decay=0.01)

    def _batches(self, name: str, done: int, steps: int) -> Iterator[VqaBatch]:
        recipe = self.recipe
        # Each phase has pictures of its own; the two branches have the same ones.
        numbers = {"patches": 0, "questions": 1, "everything": 2, "dense": 3, "madtp": 3, "shapes": 4, "crowds": 5}
        numbers |= {"dense-final": 6, "madtp-final": 6}
        seed = 10 * recipe.seed + numbers[name]
        images = recipe.images_per_batch // (2 if name in ("shapes", "crowds") else 1)
        questions = 1 if name in READING else recipe.questions_per_image
        every = VqaBatches(
            self.processor, "train", steps, images, questions, seed, name == "crowds", name.endswith("-final")
        )
        return stream(torch.utils.data.Subset(every, range(done, steps)))

    def _loss(self, name: str, batch: VqaBatch, progress: float) -> tuple[torch.Tensor, str]:
        if name.startswith("madtp"):
            return self._madtp_loss(batch, progress, name == "madtp-final")
        with torch.set_grad_enabled(name != "questions"):
            image, valid = self._image_embeds(batch)
        if name == "crowds":
            painting = self.painter.loss(image, batch.pixel_values)
            return self.reader.loss(image, batch.patches) + painting, f"painting {painting.item():.4f}"
        if name in READING:
            return self.reader.loss(image, batch.patches), ""
        logits = batch_logits(self.model, batch, image, valid)
        loss = answer_loss(logits, batch.labels)
        right = right_answers(logits, batch.labels).float()
        if name == "everything":
            reading = self.reader.loss(image, batch.patches)
            loss = loss + self.recipe.auxiliary_weight * (reading + self.painter.loss(image, batch.pixel_values))
            return loss, f"{self._said(right)}  reading {reading.item():.4f}"
        return loss, self._said(right, name == "dense-final")

    def _image_embeds(self, batch: VqaBatch, pruning: TokenPruning | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        # bfloat16 halves the time of the vision encoder's products; what is measured at the end is float32.
        with torch.autocast("cpu", torch.bfloat16):
            image, valid = image_embeds(self.model, batch.pixel_values, pruning)
        return image.float(), valid

    def _said(self, right: torch.Tensor, final: bool = False) -> str:
        easy = easy_pictures(self.recipe.images_per_batch, final)
        return f"scenes {right[:-easy].mean():.3f}  easy {right[-easy:].mean():.3f}"

    def _madtp_loss(self, batch: VqaBatch, progress: float, final: bool) -> tuple[torch.Tensor, str]:
        recipe = self.recipe
        vision = TokenPruning(self.space_dict, self.temperature)
        image, valid = self._image_embeds(batch, vision)
        text = TokenPruning(self.space_dict, self.temperature)
        logits = batch_logits(self.model, batch, image, valid, text)
        alignment = alignment_loss(vision, text, recipe.questions_per_image)
        loss = answer_loss(logits, batch.labels) + recipe.alignment_weight * alignment
        share = float(vision_macs(self.model, vision).mean()) / dense_macs(self.model)
        wanted = 1 - (1 - recipe.target) * (1.0 if final else min(1.0, progress / recipe.target_after))
        # A higher temperature prunes more, mostly: nudged a little each step, it follows the target.
        self.temperature *= min(1.02, max(0.98, 1 + 0.2 * (share - wanted)))
        said = self._said(right_answers(logits, batch.labels).float(), final)
        return loss, f"{said}  alignment {alignment.item():.3f}  tau {self.temperature:.4f}  share {share:.3f}"


def dense_macs(model: BlipForQuestionAnswering) -> float:
    return float(vision_macs(model, None).mean())


def _rate(name: str, step: int, steps: int) -> float:
    """Share of the highest learning rate: up within 5 or 10 % of the steps, then level, or down to settle."""
    rise = min(1.0, (step + 1) / ((0.1 if name in ("dense", "madtp") else 0.05) * steps))
    fall = 1.0 if name in ("questions", "everything") else 1 - step / steps
    if name == "crowds":
        fall = min(1.0, fall / 0.4)
    elif name in ("dense", "madtp"):
        fall = (1 + fall) / 2
    return rise * fall


def train(recipe: VqaRecipe, processor: BlipProcessor, work: Path, threads: int = 2) -> Iterator[tuple[str, Training]]:
    """Both models, each at the end of its training: "dense", then "madtp". The second one has the same object."""
    training = Training(recipe, processor, work, threads)
    training.phase("patches", None)
    training.phase("shapes", "patches")
    training.phase("crowds", "shapes")
    training.phase("questions", "crowds")
    training.phase("everything", "questions")
    for branch in ("dense", "madtp"):
        training.phase(branch, "everything")
        training.phase(f"{branch}-final", branch)
        yield branch, training


def measure(training: Training, madtp: bool, scene_pictures: int = 500, easy_pictures: int | None = None) -> list[Any]:
    """Scores of a trained model, as they stand in `training.json`. Its weights are rounded to the stored float16."""
    model = training.model.eval()
    model.half().float()
    ways: dict[str, dict[str, Any]] = {"none": {}}
    if madtp:
        pruning = training.space_dict.detach().half().float(), training.temperature
        ways = {"MADTP": {"pruning": pruning}, "MADTP, 25 coupled": {"pruning": pruning, "coupled": True}, **ways}
    worlds = {
        "held-out scenes": held_out_scenes(scene_pictures, seed=1000 + training.recipe.seed),
        "easy-vqa test": easy_test(easy_pictures),
    }
    return [
        {"world": world, "pruning": way} | asdict(score(model, training.processor, pictures, **options))
        for way, options in ways.items()
        for world, pictures in worlds.items()
    ]


def write(training: Training, folder: Path, scores: list[Any], madtp: bool) -> None:
    """A Hugging Face checkpoint folder with card and record."""
    recipe = asdict(training.recipe)
    result = {"scores": scores, "training_seconds": round(training.seconds)}
    model, processor = training.model, training.processor
    model.generation_config = GenerationConfig(
        bos_token_id=DEC, eos_token_id=SEP, pad_token_id=PAD, decoder_start_token_id=DEC, max_new_tokens=8
    )
    model.half().save_pretrained(folder)
    model.float()
    processor.save_pretrained(folder)
    processor.image_processor.save_pretrained(folder)
    if madtp:
        result["temperature"] = training.temperature
        save_file({"space_dict": training.space_dict.detach().half()}, folder / "madtp.safetensors")
        (folder / "madtp.json").write_text(json.dumps({"temperature": training.temperature}) + "\n")
    (folder / "training.json").write_text(json.dumps({"recipe": recipe, "result": result}, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(recipe, result, madtp))


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the two checkpoints.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    work: Annotated[Path | None, typer.Option(help="Folder for states from which an interrupted run goes on.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train the small BLIP dense and with MADTP, and write both as ordinary Hugging Face checkpoint folders."""
    for branch, training in train(VqaRecipe(seed=seed), make_processor(), work or output / "work", threads):
        scores = measure(training, branch == "madtp")
        write(training, output / ("checkpoint" if branch == "madtp" else "dense"), scores, branch == "madtp")
        print(json.dumps(scores), flush=True)


if __name__ == "__main__":
    typer.run(main)
