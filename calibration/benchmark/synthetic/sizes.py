"""Sizes of the models that are made without a checkpoint, by the name that `--synthetic` takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Preset = Literal[
    "tiny",
    "mid",
    "blip2-opt-2.7b",
    "blip2-flan-t5-xl",
    "blip-caption",
    "blip-vqa",
    "blip-retrieval",
    "blip-nlvr2",
    "clip-b16",
]

QUERIES = 32
IMAGE_SIZE, PATCH = 224, 14  # pixels, of a side


@dataclass(frozen=True)
class Tower:
    """A stack of transformer layers."""

    layers: int
    width: int
    heads: int
    feed_forward: int

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width}: {self.heads} heads can't share it equally")


@dataclass(frozen=True)
class Sizes:
    """A BLIP-2 with 224 x 224 images, patches of 14, and 32 query tokens."""

    vision: Tower
    qformer: Tower  # cross-attention in every second layer
    language: Tower  # of Flan-T5 the encoder, and the decoder is another one
    vocabulary: int
    positions: int = 2048  # of OPT
    flan_t5: bool = False  # as language model, in place of OPT


BASE = Tower(12, 768, 12, 3072)
"""BERT's and ViT's, as their papers call it."""

SIZES: dict[str, Sizes] = {
    "mid": Sizes(BASE, BASE, BASE, vocabulary=50272),
    "blip2-opt-2.7b": Sizes(Tower(39, 1408, 16, 6144), BASE, Tower(32, 2560, 32, 10240), vocabulary=50304),
    "blip2-flan-t5-xl": Sizes(
        Tower(39, 1408, 16, 6144), BASE, Tower(24, 2048, 32, 5120), vocabulary=32128, flan_t5=True
    ),
}
"""BLIP-2's, but for those of the demo, which are "tiny"."""


@dataclass(frozen=True)
class BlipSizes:
    """A BLIP, without a Q-Former: its text models read image tokens."""

    architecture: str  # Hugging Face's class; of NLVR2 this project's
    vision: Tower
    text: Tower  # of question answering encoder and decoder alike
    vocabulary: int
    side: int  # pixels of an image, of a side
    patch: int  # pixels, of a side
    positions: int = 512


BLIP: dict[str, BlipSizes] = {
    "blip-caption": BlipSizes("BlipForConditionalGeneration", BASE, BASE, 30524, side=384, patch=16),
    "blip-vqa": BlipSizes("BlipForQuestionAnswering", BASE, BASE, 30524, side=480, patch=16),
    "blip-retrieval": BlipSizes("BlipForImageTextRetrieval", BASE, BASE, 30524, side=384, patch=16),
    "blip-nlvr2": BlipSizes("BlipForNlvr2", BASE, BASE, 30524, side=384, patch=16),
}
"""BLIP's of the tasks of MADTP's paper, with ViT-B/16: as of Salesforce/blip-image-captioning-base and its like, with
the images of the official evaluation (https://github.com/double125/MADTP).
"""


@dataclass(frozen=True)
class ClipSizes:
    """A CLIP: two encoders, and projections to vectors of the same length."""

    vision: Tower
    text: Tower
    vector: int
    vocabulary: int
    side: int  # pixels of an image, of a side
    patch: int  # pixels, of a side
    positions: int = 77


CLIP: dict[str, ClipSizes] = {
    "clip-b16": ClipSizes(BASE, Tower(12, 512, 8, 2048), vector=512, vocabulary=49408, side=224, patch=16),
}
"""CLIP's, as of openai/clip-vit-base-patch16."""
