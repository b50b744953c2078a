"""The demo checkpoint's model card, written from the record of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD = """\
---
license: apache-2.0
pipeline_tag: image-text-to-text
library_name: transformers
---

# CATP demo model

A small BLIP-2 (`Blip2ForConditionalGeneration`: ViT 4 x 128, Q-Former 4 x 128 with 32 queries and cross-attention
in two layers, OPT 2 x 128) that answers questions about coloured shapes on a 3 x 3 grid. It exists to show and test
the exporter: it is genuinely trained, but on drawings, and says nothing about photographs.

Made by `python -m catp.export.demo.train -o FOLDER --seed {seed}` in {minutes:.0f} minutes on two busy CPU cores, from
nothing but scenes drawn by `catp.export.demo.scenes`. Layouts that are asked about in evaluation were never trained on.

1. {auxiliary_steps:,} steps: each query describes one cell of the grid (row, column, colour, shape) through a linear
   head that is thrown away; three or four queries share a cell.
2. {joint_steps:,} steps: answers, plus that loss at weight {auxiliary_weight}.
3. {language_steps:,} steps: the language model alone, with random queries dropped (4 to 32 stay), half of the batches
   with the positions that tokens had before pruning, half with compact ones.

Batches of {images_per_batch} pictures with {questions_per_image} questions each. The attention was not supervised.

Measured in PyTorch on {questions:,} held-out questions: exact match {exact_match:.1%}; with 16 of 32 queries dropped
at random {exact_match_random_16_of_32_original:.1%} (original positions) and
{exact_match_random_16_of_32_compact:.1%} (compact). Relative spread of the projected queries {query_spread:.2f} (0
would mean that they are all equal).
"""


def model_card(recipe: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """README.md of the checkpoint folder."""
    return CARD.format(**recipe, **result, minutes=result["training_seconds"] / 60)
