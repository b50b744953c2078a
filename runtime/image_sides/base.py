"""The interface of an image side: how pictures become what a language model reads first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded, Pruned, Seen, Votes
from catp.runtime.inputs.image_files import ImageSource


class ImageSide(Protocol):
    """The graphs before the language model, loaded, one stage after the other."""

    def num_kept(self, ratio: float | None = None) -> int:
        """Tokens of an image that are left at a pruning ratio (None: the bundle's default).

        Raises:
            UsageError: it is out of range, or this bundle keeps every token.
        """
        ...

    def check_mass(self, mass: float | None) -> None:
        """Raises UsageError where a share of the votes is out of range, or this bundle keeps every token."""
        ...

    def preprocess(self, images: Sequence[ImageSource]) -> np.ndarray:
        """pixel_values float32 [B, 3, H, W].

        Raises:
            ImageError: an image can't be read.
        """
        ...

    def instruct(self, prompts: Sequence[str]) -> Mapping[str, np.ndarray]:
        """Inputs made of the prompts, by name; none where votes don't depend on them.

        Raises:
            UsageError: a prompt is too long.
        """
        ...

    def encode(self, pixel_values: np.ndarray, prompts: Sequence[str] = (), encoder: EncoderWish = DEFAULT) -> Encoded:
        """Everything that is computed of an image before tokens are chosen; one entry serves every ratio.

        Args:
            pixel_values: float32 [B, 3, H, W].
            prompts: one for each image, where votes depend on them.
            encoder: what an encoder that prunes keeps.

        Raises:
            UsageError: the encoder can't keep that.
        """
        ...

    def prune(self, encoded: Encoded, kept: int) -> Pruned:
        """The `kept` best tokens of each image, in the engine's memory."""
        ...

    def votes(self, encoded: Encoded) -> Votes:
        """All tokens with their scores, in host memory: for choices that the graph can't make."""
        ...

    def remember(self, encoded: Encoded) -> Seen:
        """The part of an image's results that is the same at every ratio, in host memory."""
        ...

    def by_mass(self, encoded: Encoded, mass: float, frames: int = 1) -> list[tuple[list[int], Pruned]]:
        """Images that keep equally many tokens, together: of each, the fewest with this share of its votes.

        Args:
            frames: of each video, if they are some: each keeps its own number, and videos with equal sums are together.
        """
        ...
