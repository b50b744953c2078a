"""Trains the small BLIP that judges statements about two pictures: `python -m catp.export.demo.nlvr.train -o FOLDER`.

It begins where the dense small BLIP that answers questions has ended, and has two phases:

1. Statements: the text encoder and its head, behind the frozen vision encoder, whose tokens are computed once.
2. Everything, with pictures drawn anew.
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
from torch.nn import functional as F
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from catp.export.demo.nlvr.batches import Batch, make_batch, pixel_values
from catp.export.demo.nlvr.card import model_card
from catp.export.demo.nlvr.losses import WordTeller
from catp.export.demo.nlvr.pool import Pool
from catp.export.demo.nlvr.untrained import make_model, make_tokenizer
from catp.export.demo.vqa.untrained import IMAGE_SIZE
from catp.runtime.bundle.image_spec import ImageSpec

PHASES = ("statements", "everything")


@dataclass(frozen=True)
class NlvrRecipe:
    """Everything that decides the result, recorded in the model card."""

    seed: int = 0
    pictures: int = 4000
    pairs_per_batch: int = 16
    statements_per_pair: int = 12
    statement_steps: int = 2500
    joint_steps: int = 300
    statement_learning_rate: float = 7e-4
    joint_learning_rate: float = 3e-4
    auxiliary_weight: float = 0.3  # of what words tell, in the second phase; 1 in the first


def logits(model: Any, batch: Batch, first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [P * Q, 2], and tokens [P * Q, S, W] before the last layer.

    It is `model.judge`, with each picture's keys and values computed once for all its statements.

    Args:
        first, second: image tokens [P, I, W].
    """
    hidden = model.text_encoder.embeddings(batch.ids)
    unseen = (1.0 - batch.mask[:, None, None, :].float()) * torch.finfo(hidden.dtype).min
    shape, pairs = hidden.shape, len(first)
    before = hidden
    for layer in model.text_encoder.encoder.layer:
        before = hidden
        hidden, _ = layer.attention(hidden, attention_mask=unseen)
        # Tokens read images one by one: whose statement they belong to does not matter to cross-attention.
        hidden = layer.crossattention(hidden.view(pairs, -1, shape[-1]), first, second).view(shape)
        hidden = layer.feed_forward_chunk(hidden)
    return model.cls_head(hidden[:, 0]), before


class Training:
    """The model on its way, kept on disk so that an interrupted run goes on where it stopped."""

    def __init__(self, recipe: NlvrRecipe, work: Path, threads: int = 1) -> None:
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(threads)
        self.recipe, self.work = recipe, work
        self.tokenizer = make_tokenizer()
        self.processor = BlipImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
        self.spec = ImageSpec.from_preprocessor_config(self.processor.to_dict())
        self.model: Any = make_model(self.tokenizer).train()
        self.teller = WordTeller(self.tokenizer, self.model.config.text_config.hidden_size)
        self.seconds = 0.0
        work.mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        for number, phase in enumerate(PHASES):
            self._phase(phase, PHASES[number - 1] if number else None)

    def _phase(self, name: str, before: str | None) -> None:
        """One phase, from the end of the one before it; nothing is done where it has ended already."""
        recipe = self.recipe
        steps = recipe.statement_steps if name == "statements" else recipe.joint_steps
        peak = recipe.statement_learning_rate if name == "statements" else recipe.joint_learning_rate
        state = self._load(name)
        if state is None and before is not None:
            self._load(before)
        done = state["step"] if state else 0
        if done >= steps:
            return
        trained = [*self.model.text_encoder.parameters(), *self.model.cls_head.parameters()]
        trained += self.teller.parameters()
        if name == "everything":
            trained += self.model.vision_model.parameters()
        optimizer = torch.optim.AdamW(trained, lr=peak, weight_decay=0.01)
        if state:
            optimizer.load_state_dict(state["optimizer"])
        # A phase that goes on has other pictures and pairs than one that was never interrupted.
        pool = Pool(recipe.pictures, 10 * recipe.seed + PHASES.index(name) + 100 * done, "train")
        images = self._images(pool, name)
        right = 0.0
        for step in range(done, steps):
            started = time.monotonic()
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1.0, (step + 1) / (0.05 * steps), 1.02 - step / steps)
            batch = make_batch(pool, self.tokenizer, recipe.pairs_per_batch, recipe.statements_per_pair)
            found, words = logits(self.model, batch, *next(images)(batch))
            told = self.teller.loss(words, batch)
            weight = 1.0 if name == "statements" else recipe.auxiliary_weight
            loss = F.cross_entropy(found, batch.truth) + weight * told
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            self.seconds += time.monotonic() - started
            right += float((found.argmax(-1) == batch.truth).float().mean()) / 50
            if (step + 1) % 50 == 0:
                said = f"loss {loss.item():.4f}  told {told.item():.4f}  right {right:.3f}"
                print(f"{name} {step + 1:5d}  {said}  {self.seconds:.0f} s", flush=True)
                right = 0.0
            if (step + 1) % 250 == 0 or step + 1 == steps:
                self._save(name, step + 1, optimizer)

    def _images(self, pool: Pool, name: str) -> Iterator[Any]:
        """For each step, what gives the image tokens [P, I, W] of a batch's first and second pictures."""
        if name == "statements":
            started = time.monotonic()
            with torch.no_grad():
                parts = [
                    self._encode(pixel_values(pool, places, self.spec)).half()
                    for places in torch.arange(len(pool.scenes)).split(50)
                ]
            tokens = torch.cat(parts)
            self.seconds += time.monotonic() - started
            while True:
                yield lambda batch: (tokens[batch.first].float(), tokens[batch.second].float())
        turn = 0
        while True:
            turn += 1

            def encode(batch: Batch, turn: int = turn) -> tuple[torch.Tensor, ...]:
                places = torch.cat([batch.first, batch.second]).tolist()
                return self._encode(pixel_values(pool, places, self.spec, turn)).chunk(2)

            yield encode

    def _encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        # bfloat16 halves the time of the vision encoder's products; what is measured at the end is float32.
        with torch.autocast("cpu", torch.bfloat16):
            return self.model.vision_model(pixel_values).last_hidden_state.float()

    def _save(self, name: str, step: int, optimizer: torch.optim.Optimizer) -> None:
        state = {
            "model": self.model.state_dict(),
            "teller": self.teller.state_dict(),
            "optimizer": optimizer.state_dict(),
        }
        torch.save({**state, "step": step, "seconds": self.seconds}, self.work / f"{name}.new")
        (self.work / f"{name}.new").replace(self.work / f"{name}.pt")

    def _load(self, name: str) -> dict[str, Any] | None:
        """The state that `_save` wrote under this name, its weights put back; None where there is none."""
        file = self.work / f"{name}.pt"
        if not file.exists():
            return None
        state: dict[str, Any] = torch.load(file, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.teller.load_state_dict(state["teller"])
        self.seconds = state["seconds"]
        return state


@torch.no_grad()
def measure(training: Training, pairs: int = 1000) -> dict[str, Any]:
    """Accuracy on held-out pairs, a statement each; the model's weights are rounded to the stored float16."""
    model = training.model.eval()
    model.half().float()
    pool = Pool(2 * pairs, 1000 + training.recipe.seed, "held-out")
    rows = make_batch(pool, training.tokenizer, pairs, 1)
    right = 0
    for part in torch.arange(pairs).split(50):
        places = torch.cat([rows.first[part], rows.second[part]]).tolist()
        found = model(pixel_values(pool, places, training.spec), rows.ids[part], rows.mask[part])
        right += int((found.argmax(-1) == rows.truth[part]).sum())
    return {"pairs": pairs, "accuracy": right / pairs, "true": float(rows.truth.float().mean())}


def write(training: Training, folder: Path, score: dict[str, Any]) -> None:
    """A checkpoint folder with card and record."""
    recipe = asdict(training.recipe)
    result = {"held-out pairs": score, "training_seconds": round(training.seconds)}
    training.model.half().save_pretrained(folder)
    training.tokenizer.save_pretrained(folder)
    training.processor.save_pretrained(folder)
    (folder / "training.json").write_text(json.dumps({"recipe": recipe, "result": result}, indent=2) + "\n")
    (folder / "README.md").write_text(model_card(recipe, result))


def main(
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the checkpoint.")],
    seed: Annotated[int, typer.Option(help="Seed of weights and data.")] = 0,
    work: Annotated[Path | None, typer.Option(help="Folder for states from which an interrupted run goes on.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train the small BLIP for two pictures and write it as a checkpoint folder."""
    training = Training(NlvrRecipe(seed=seed), work or output / "work", threads)
    training.run()
    score = measure(training)
    write(training, output, score)
    print(json.dumps(score), flush=True)


if __name__ == "__main__":
    typer.run(main)
