"""The interface of an image encoder: its graphs, and what they are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from catp.export.graphs import Graph
from catp.export.image_encoders.pruned_reference import PrunedEmbeds


@dataclass(frozen=True)
class ImageEmbeds:
    """An encoder's result for B pictures, by plain PyTorch."""

    embeds: torch.Tensor  # float32 [B, I, Dv], CLS first
    weights: torch.Tensor  # float32 [B, I], for a vote that weighs image tokens
    pruned: PrunedEmbeds | None = None  # of an encoder that prunes, how they came about


class ImageEncoder(Protocol):
    """The part of a family before the Q-Former, or before whatever reads image tokens.

    `catp.runtime.image_sides` runs what it exports, by the name in `side`.
    """

    side: str
    """A name in `catp.runtime.bundle.chains.IMAGE_STAGES`: its first stages are these graphs, in this order."""

    prunes: bool
    """Whether fewer tokens leave it than a picture has: the graphs after it then take any number of them."""

    def set_dtype(self, model: Any, dtype: torch.dtype) -> None:
        """Turn the weights of these graphs into `dtype`, in place."""
        ...

    def graphs(self, model: Any, image_weights: bool) -> Iterator[Graph]:
        """The graphs; the last one outputs image_embeds [B, I, Dv].

        Args:
            image_weights: whether it outputs image_weights float32 [B, I] as well, for a vote that reads them.
        """
        ...

    def embed(self, model: Any, pixel_values: torch.Tensor) -> ImageEmbeds:
        """Image embeddings by plain PyTorch, which shares nothing with the graphs.

        Args:
            pixel_values: float32 [B, 3, H, W].
        """
        ...

    def standing_in(self, model: Any) -> AbstractContextManager[None]:
        """While it lasts, Hugging Face's own methods of `model` see what this encoder sees."""
        ...
