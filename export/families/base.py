"""What a model family has to tell the exporter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch

from catp.export.graphs import Graph
from catp.export.methods.base import Evidence, VotingMethod


class Family(Protocol):
    """One architecture: how it is loaded, split into graphs, and run by plain PyTorch for comparison."""

    name: str  # for people: "BLIP-2 with a decoder-only language model"
    model_type: str  # Hugging Face's, of the whole model
    language_model: str  # "decoder-only" or "encoder-decoder"

    def model_class(self) -> type[Any]:
        """The Hugging Face class that `from_pretrained` is called on."""
        ...

    def check(self, model: Any, name: str) -> None:
        """Raises UsageError where this checkpoint has a part that the graphs can't express."""
        ...

    def set_dtype(self, model: Any, dtype: torch.dtype) -> None:
        """Turns the weights of the parts whose graphs have the bundle's precision into `dtype`, in place."""
        ...

    def cross_layers(self, model: Any) -> int:
        """How many of the Q-Former's layers read the image."""
        ...

    def graphs(
        self, model: Any, method: VotingMethod, compared: Sequence[VotingMethod] | None = None
    ) -> Iterator[Graph]:
        """The graphs of the bundle, in the order of the pipeline. Each may be dropped before the next is made.

        Args:
            compared: with diagnostics, the methods whose scores the Q-Former graph puts out as well.
        """
        ...

    def image_embeds(self, model: Any, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, I, Dv] and image weights [B, I]: what each token receives in the last self-attention, mean over heads."""
        ...

    def query_embeds(
        self, model: Any, image_embeds: torch.Tensor, image_weights: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, Evidence]:
        """Projected query tokens [B, N, Dl], and everything that a vote may read, by plain PyTorch."""
        ...
