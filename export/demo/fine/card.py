"""The second demo's model card, written from the record of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---

# CATP small BLIP-2 of 144 patches

A small BLIP-2 (`Blip2ForConditionalGeneration`: pictures of 96 x 96 in 144 patches, ViT 6 x 128, Q-Former 4 x 128 with
32 queries and cross-attention in two layers, OPT 2 x 128) that answers questions about coloured shapes: scenes on a
3 x 3 grid, and the pictures of the package `easy-vqa`. It exists to show and test pruning inside a BLIP-2's vision
encoder: it is genuinely trained, but on drawings, and says nothing about photographs.

## Data

- Scenes drawn by `catp.export.demo.scenes`; layouts that are asked about in evaluation were never trained on.
- [easy-vqa](https://github.com/vzhou842/easy-VQA) 1.0 (Victor Zhou, MIT licence), 5,000 pictures made by others, in its
  official split: 4,000 to train on (mirrored at random), 1,000 to test with.

## Training

Made by `python -m catp.export.demo.fine.train -o FOLDER --seed {seed}` in {minutes:.0f} minutes on two busy CPU cores
(AMD EPYC). As BLIP-2 was: the vision encoder is another model's, the [dense small BLIP's](../../vqa/dense/README.md),
and was not trained any further. Query tokens, Q-Former, projection and language model began as the
[first demo's](../../checkpoint/README.md).

1. {joint_steps:,} steps: answers, plus the loss of a head that tells cells from queries, at weight {auxiliary_weight}.
2. {language_steps:,} steps: the language model alone, with random queries dropped (4 to 32 stay), half of the batches
   with the positions that tokens had before pruning, half with compact ones.

Batches of {images_per_batch} pictures, one in three of them easy-vqa's, with {questions_per_image} questions each.
Attention was not supervised; nothing was pruned inside the encoder.

## Measured

In PyTorch, on {questions:,} questions about held-out scenes: exact match {exact_match:.1%}; with 16 of 32 queries
dropped at random {exact_match_random_16_of_32_original:.1%} (original positions) and
{exact_match_random_16_of_32_compact:.1%} (compact). Relative spread of the projected queries {query_spread:.2f} (0
would mean that they are all equal). On all {easy_vqa_questions:,} test questions of easy-vqa
{easy_vqa_exact_match:.1%}.
"""


def model_card(recipe: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """README.md of the checkpoint folder."""
    return CARD.format(**recipe, **result, minutes=result["training_seconds"] / 60)
