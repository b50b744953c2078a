"""The model cards of the two small BLIPs, written from the record of their training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD = """\
---
license: apache-2.0
pipeline_tag: visual-question-answering
library_name: transformers
---

# {title}

A small BLIP (`BlipForQuestionAnswering`: pictures of 96 x 96 in 144 patches, ViT 6 x 128, question encoder and answer
decoder 3 x 128 each, a word-level vocabulary of 49) that answers questions about coloured shapes: scenes on a 3 x 3
grid, and the pictures of the package `easy-vqa`. {difference}

It exists to show and test token pruning inside an encoder: it is genuinely trained, but on drawings, and says nothing
about photographs.

{record}
## Data

- Scenes drawn by `catp.export.demo.scenes`; layouts that are asked about in evaluation were never trained on.
- [easy-vqa](https://github.com/vzhou842/easy-VQA) 1.0 (Victor Zhou, MIT licence), 5,000 pictures made by others, in its
  official split: 4,000 to train on (mirrored and turned at random), 1,000 to test with. The last phase was added to
  the recipe after its batches and 150 of the test pictures had told the same: yes-or-no questions were answered worst.

## Training

Made by `python -m catp.export.demo.vqa.train -o FOLDER --seed {seed}` in {minutes:.0f} minutes on two CPU cores
(AMD EPYC) that others used too; the two branches ran at the same time, one thread each. The recipe is in
`training.json`. Batches of {images_per_batch} pictures, one in three of them easy-vqa's, with {questions_per_image}
questions each. Attention was not supervised.

1. {patch_steps:,} steps: each patch tells row, column, colour and shape of its cell through a linear head that is
   thrown away (easy-vqa: colour and shape of the picture's one shape). Then {shape_steps:,} more steps, half as many
   pictures each, at a higher learning rate, and {crowd_steps:,} with scenes that have something in nearly every cell,
   where each patch also paints its cell in 8 x 8 dots: shapes take longest.
2. {question_steps:,} steps: the text parts, behind the frozen vision encoder.
3. {joint_steps:,} steps: everything, plus the losses of the first phase at weight {auxiliary_weight}.
4. {branch_steps:,} steps, and {final_steps:,} more in which two pictures in three are easy-vqa's, mirrored only:
   {branch}

## Measured

Exact match of greedy answers in PyTorch, float32 arithmetic on the float16 weights that lie here, every question asked
alone; GMAC are multiply-adds of the vision encoder's matrix products, guidance included.

{table}
"""

DENSE = {
    "title": "CATP small BLIP, dense",
    "difference": "It is the dense twin of the one with MADTP: same base, same further steps and data, no pruning.",
    "record": "",
    "branch": "everything, answers alone. Its twin spent the same steps on the same batches with MADTP.",
}

MADTP = {
    "title": "CATP small BLIP with MADTP",
    "difference": "Its encoders prune tokens as MADTP does (arXiv 2403.02991).",
    "record": """\
Beside the ordinary checkpoint, whose weights transformers loads and runs without pruning, lie `madtp.safetensors`
(`space_dict` [100, 128], float16: the dictionary that vision and question encoder share) and `madtp.json` (the
temperature at the end of training).
""",
    "branch": """everything, with MADTP pruning in every layer of the vision and the question encoder: answers plus
   {alignment_weight} x cosine embedding loss between the layer-summed dictionary features of picture and question. The
   temperature was nudged each step so that {target:.0%} of the vision encoder's operations remain. Unlike in the
   official code, pictures of a batch are not coupled: each keeps what it would keep alone.""",
}


def model_card(recipe: Mapping[str, Any], result: Mapping[str, Any], madtp: bool) -> str:
    """README.md of a checkpoint folder."""
    parts = {name: text.format(**recipe) for name, text in (MADTP if madtp else DENSE).items()}
    lines = [
        "| questions | pruning | exact match | GMAC | tokens at each layer's MLP, of 145 |",
        "|---|---|---|---|---|",
    ]
    for entry in result["scores"]:
        tokens = ", ".join(f"{count:.0f}" for count in entry["vision_tokens"]) or "all"
        lines.append(
            f"| {entry['questions']:,} {entry['world']} | {entry['pruning']} | {entry['exact_match']:.1%} "
            f"| {entry['vision_macs'] / 1e9:.3f} | {tokens} |"
        )
    minutes = result["training_seconds"] / 60
    return CARD.format(**recipe, **parts, table="\n".join(lines), minutes=minutes)
