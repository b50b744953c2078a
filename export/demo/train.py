"""Trains the demo model from scratch: `python -m catp.export.demo.train -o FOLDER` (about 15 minutes on two cores).

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

import functools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from catp.export.demo import scenes
from catp.runtime.images import ImageSpec, preprocess

IMAGE_SIZE = 96
QUERIES = 32
IGNORE = -100
PAD, EOS = 1, 2  # as OPT numbers them; EOS also begins every prompt


@dataclass(frozen=True)
class Recipe:
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


# --- tokenizer and model ------------------------------------------------------------------------------


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE like OPT's, with `</s>` before every text, learned from the demo's own questions."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (f"{e.question.prompt} {e.question.answer}" for e in scenes.examples(4000, seed=1, split="train"))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A $B", special_tokens=[("</s>", EOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip


def make_processor() -> Blip2Processor:
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<image>", normalized=False, special=True)], special_tokens=True)
    return Blip2Processor(BlipImageProcessorPil(size=size), tokenizer, num_query_tokens=QUERIES)


def make_model(processor: Blip2Processor) -> Blip2ForConditionalGeneration:
    """An untrained model whose queries start, and can stay, distinct."""
    tokenizer = processor.tokenizer
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=128, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
            image_size=IMAGE_SIZE, patch_size=16, initializer_range=0.02,
        ),
        qformer_config=Blip2QFormerConfig(
            vocab_size=len(tokenizer), hidden_size=128, intermediate_size=512, num_hidden_layers=4,
            num_attention_heads=4, cross_attention_frequency=2, encoder_hidden_size=128,
            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        ),
        text_config=OPTConfig(
            vocab_size=len(tokenizer), hidden_size=128, word_embed_proj_dim=128, ffn_dim=512, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=256, dropout=0.0,
            bos_token_id=EOS, eos_token_id=EOS, pad_token_id=PAD,
        ),
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    model = Blip2ForConditionalGeneration(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5)
        # Strong identities at the input and weak mixing inside: what keeps the queries apart.
        model.query_tokens.normal_(0, 1)
        model.vision_model.embeddings.position_embedding.normal_(0, 1)
        # The language model's positions are weaker, of the size of its word embeddings: they must not drown them.
        model.language_model.model.decoder.embed_positions.weight.normal_(0, 0.1)
        for layer in model.qformer.encoder.layer:
            layer.attention.output.dense.weight.mul_(0.1)
            layer.output_query.dense.weight.mul_(0.3)
            if layer.has_cross_attention:
                layer.crossattention.attention.query.weight.mul_(2)
                layer.crossattention.attention.key.weight.mul_(2)
    return model


# --- data ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    pixel_values: torch.Tensor  # float32 [B, 3, H, W]
    cells: torch.Tensor  # int64 [B, 9, 2]: colour and shape of each cell; the last class is "nothing"
    text: torch.Tensor  # int64 [B, Q, L]: prompt, answer, EOS, padding
    labels: torch.Tensor  # int64 [B, Q, L]: the next token where it belongs to the answer, else IGNORE


class Batches(torch.utils.data.Dataset[Batch]):
    """Batch i is a function of (seed, split, i) alone, whoever computes it."""

    def __init__(self, processor: Blip2Processor, recipe: Recipe, split: scenes.Split, count: int) -> None:
        self.tokenizer, self.recipe, self.split, self.count = processor.tokenizer, recipe, split, count
        self.image_spec = ImageSpec.from_preprocessor_config(processor.image_processor.to_dict())

        # There are only some hundred different prompts, and tokenising is slower than drawing.
        self._tokenize = functools.cache(self._tokenize_once)

    def _tokenize_once(self, question: scenes.Question) -> tuple[list[int], list[int]]:
        prompt = self.tokenizer(question.prompt).input_ids
        return prompt, self.tokenizer(f" {question.answer}", add_special_tokens=False).input_ids

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        rng = np.random.default_rng([self.recipe.seed, self.split == "train", index])
        rows = [scenes.random_scene(rng, self.split) for _ in range(self.recipe.images_per_batch)]
        colors, shapes = list(scenes.COLORS), list(scenes.SHAPES)
        cells = torch.tensor([len(colors), len(shapes)]).repeat(len(rows), scenes.GRID**2, 1)
        for row, scene in enumerate(rows):
            for thing in scene.things:
                cells[row, thing.cell] = torch.tensor([colors.index(thing.color), shapes.index(thing.shape)])
        pixels = preprocess([scenes.draw(scene, rng) for scene in rows], self.image_spec)
        sequences, answer_starts = [], []
        for scene in rows:
            for question in scenes.questions(scene, rng, self.recipe.questions_per_image):
                prompt, answer = self._tokenize(question)
                sequences.append([*prompt, *answer, EOS])
                answer_starts.append(len(prompt))
        length = max(map(len, sequences))
        text = torch.full((len(sequences), length), PAD)
        labels = torch.full((len(sequences), length), IGNORE)
        for i, (sequence, start) in enumerate(zip(sequences, answer_starts)):
            text[i, : len(sequence)] = torch.tensor(sequence)
            labels[i, start - 1 : len(sequence) - 1] = torch.tensor(sequence[start:])
        shape = (len(rows), self.recipe.questions_per_image, length)
        return Batch(torch.from_numpy(pixels), cells, text.view(shape), labels.view(shape))


def stream(dataset: Batches) -> Iterator[Batch]:
    # A worker draws the pictures while the main process trains.
    return iter(torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, prefetch_factor=4))


# --- losses -------------------------------------------------------------------------------------------


def describe_images(model: Blip2ForConditionalGeneration, pixel_values: torch.Tensor) -> torch.Tensor:
    """Query embeddings before projection, float32 [B, N, Dq]."""
    image_embeds = model.vision_model(pixel_values).last_hidden_state
    queries = model.query_tokens.expand(len(pixel_values), -1, -1)
    return model.qformer(query_embeds=queries, encoder_hidden_states=image_embeds).last_hidden_state


class CellReader(torch.nn.Module):
    """The auxiliary head: query q tells row, column, colour and shape of cell q mod 9. Not part of the model."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (scenes.GRID, scenes.GRID, len(scenes.COLORS) + 1, len(scenes.SHAPES) + 1)
        self.linear = torch.nn.Linear(width, sum(self.sizes))

    def loss(self, queries: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        cell = torch.arange(queries.shape[1]) % scenes.GRID**2
        place = torch.stack([cell // scenes.GRID, cell % scenes.GRID], -1).expand(len(cells), -1, -1)
        targets = torch.cat([place, cells[:, cell]], -1)
        parts = self.linear(queries).split(self.sizes, -1)
        return torch.stack(
            [F.cross_entropy(part.flatten(0, 1), targets[..., i].flatten()) for i, part in enumerate(parts)]
        ).mean()


def answer_logits(
    model: Blip2ForConditionalGeneration, queries: torch.Tensor, text: torch.Tensor, kept: torch.Tensor, compact: bool
) -> torch.Tensor:
    """Logits [B, Q, L, V] of all questions of an image behind one shared prefix.

    Args:
        queries: query embeddings [B, N, Dq].
        text: token ids [B, Q, L].
        kept: bool [B, N]; the others are invisible, as if they had been pruned.
        compact: whether kept tokens close ranks (positions 0..k-1) or keep their own positions.
    """
    batch, count, length = text.shape
    n = queries.shape[1]
    prefix = model.language_projection(queries)
    words = model.get_input_embeddings()(text.flatten(1))
    if compact:
        prefix_positions, start = kept.long().cumsum(1) - 1, kept.sum(1, keepdim=True)
        prefix_positions = prefix_positions.clamp(min=0)
    else:
        prefix_positions, start = torch.arange(n).expand(batch, -1), torch.full((batch, 1), n)
    text_positions = (start + torch.arange(length)).repeat(1, count)
    # A token sees the kept part of the prefix that is not after it, and its own question up to itself.
    question = torch.arange(count).repeat_interleave(length)
    step = torch.arange(length).repeat(count)
    sees = torch.zeros(batch, n + count * length, n + count * length, dtype=torch.bool)
    sees[:, :n, :n] = torch.ones(n, n, dtype=torch.bool).tril() & kept[:, None]
    sees[:, :n, :n] |= torch.eye(n, dtype=torch.bool)  # a dropped token sees itself: softmax needs something
    sees[:, n:, :n] = kept[:, None]
    sees[:, n:, n:] = (question[:, None] == question) & (step[:, None] >= step)
    hidden = model.language_model.model(
        inputs_embeds=torch.cat([prefix, words], 1),
        attention_mask=sees[:, None],
        position_ids=torch.cat([prefix_positions, text_positions], 1),
        use_cache=False,
    ).last_hidden_state
    return model.language_model.lm_head(hidden[:, n:]).view(batch, count, length, -1)


def answer_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 2), labels.flatten(), ignore_index=IGNORE)


def random_kept(batch: int, rng: np.random.Generator, fewest: int = 4) -> torch.Tensor:
    """bool [batch, N]: per row, between `fewest` and all queries, chosen at random."""
    order = torch.from_numpy(rng.permuted(np.tile(np.arange(QUERIES), (batch, 1)), axis=1))
    return order < torch.from_numpy(rng.integers(fewest, QUERIES + 1, (batch, 1)))


@torch.no_grad()
def exact_match(model: Blip2ForConditionalGeneration, batches: Batches, drop: int = 0, compact: bool = False) -> float:
    """Share of questions whose whole answer, EOS included, is the greedy one (with `drop` random queries gone)."""
    rng, right, total = np.random.default_rng(0), 0, 0
    for i in range(len(batches)):
        batch = batches[i]
        order = torch.from_numpy(rng.permuted(np.tile(np.arange(QUERIES), (len(batch.text), 1)), axis=1))
        queries = describe_images(model, batch.pixel_values)
        best = answer_logits(model, queries, batch.text, order >= drop, compact).argmax(-1)
        right += int(((best == batch.labels) | (batch.labels == IGNORE)).all(-1).sum())
        total += batch.labels.shape[0] * batch.labels.shape[1]
    return right / total


@torch.no_grad()
def query_spread(model: Blip2ForConditionalGeneration, batches: Batches) -> float:
    """How far apart an image's projected queries are: |q - mean q| / |q|, 0 when all are equal."""
    projected = model.language_projection(describe_images(model, batches[0].pixel_values))
    return float((projected - projected.mean(1, keepdim=True)).norm() / projected.norm())


# --- training -----------------------------------------------------------------------------------------


def train(recipe: Recipe, processor: Blip2Processor) -> tuple[Blip2ForConditionalGeneration, dict[str, float]]:
    torch.manual_seed(recipe.seed)
    model = make_model(processor)
    reader = CellReader(model.query_tokens.shape[-1])
    held_out = Batches(processor, recipe, "held-out", 4)
    rng = np.random.default_rng(recipe.seed)
    everything = torch.ones(recipe.images_per_batch, QUERIES, dtype=torch.bool)
    started = time.monotonic()

    first_two = recipe.auxiliary_steps + recipe.joint_steps
    batches = stream(Batches(processor, recipe, "train", first_two + recipe.language_steps))
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
    base = Recipe()
    recipe = Recipe(
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
    print(json.dumps(report))


if __name__ == "__main__":
    typer.run(main)
