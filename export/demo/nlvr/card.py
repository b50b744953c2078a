"""The model card of the small BLIP for two pictures, written from the record of its training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARD = """\
---
license: apache-2.0
---

# CATP small BLIP for two pictures

A small BLIP for NLVR2's task (`catp.export.nlvr.BlipForNlvr2`): two pictures of 96 x 96 in 144 patches each and a
statement about them; it says whether the statement is true. ViT of 6 x 128, text encoder of 3 x 128 that reads the
pictures side by side, a word-level vocabulary of 49.

It exists to show and test token pruning inside an encoder: it is genuinely trained, but on drawings, and says nothing
about photographs.

## Data

Scenes drawn by `catp.export.demo.scenes`, in pairs that often share a thing, a shape or a number of things, and
statements of ten kinds, such as "both pictures have a red circle", "the left picture has more shapes than the right
picture" and "there is a blue star in the top left of the right picture". The kind is drawn first, then whether the
statement shall be true, then its words: guessing gives 50 %, for every kind. Layouts of evaluation were never trained
on.

## Training

Made by `python -m catp.export.demo.nlvr.train -o FOLDER --seed {seed}` in {minutes:.0f} minutes on one thread of a CPU
core (AMD EPYC) that others used too. The recipe is in `training.json`. It begins with the weights of the dense small
BLIP that answers questions (`catp.export.demo.vqa`): its vision encoder, its question encoder with cross-attention
twinned, as the official code begins with a BLIP of other tasks. Batches of {pairs_per_batch} pairs with
{statements_per_pair} statements each.

1. {statement_steps:,} steps: text encoder and head, behind the frozen vision encoder; {pictures:,} pictures. Beside
   true or false, words tell what they find in each picture, by linear heads that are thrown away: a colour the shape
   and the place of its thing, a shape its colours, "shapes" how many there are. Without these heads (and at a
   learning rate of 1e-3) 400 steps had taught nothing: 50.5 % were right.
2. {joint_steps:,} steps: everything, pictures drawn anew; what words tell counts {auxiliary_weight} times as much.

## Measured

On {pairs:,} held-out pairs, a statement each, in PyTorch, float32 arithmetic on the float16 weights that lie here:
{accuracy:.1%} right. What pruning costs is in `../accuracy/`.
"""


def model_card(recipe: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """README.md of the checkpoint folder."""
    minutes = result["training_seconds"] / 60
    return CARD.format(**recipe, **result["held-out pairs"], minutes=minutes)
