"""Image sides of a checkpoint that writes: the parts from pictures to what its language model reads.

vision    pixel_values float32 [B,3,H,W] -> image tokens [B,I,Dv]
qformer   image tokens, of InstructBLIP with instruction int64 [B,T] -> query embeddings [B,N,Dl], projected for the
          language model; of BLIP-2 and InstructBLIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


class VisionTower(torch.nn.Module):
    """The ViT with its layer norm."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_model = model.vision_model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.vision_model(pixel_values=pixel_values).last_hidden_state


class ProjectedQueries(torch.nn.Module):
    """The Q-Former and the projection to the language model's width."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.query_tokens, self.qformer, self.projection = model.query_tokens, model.qformer, model.language_projection

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        return self._project(image_embeds)

    def _project(self, image_embeds: torch.Tensor, **read: torch.Tensor) -> torch.Tensor:
        """Args: `read`: what the Q-Former reads beside the image."""
        queries = self.query_tokens.expand(image_embeds.shape[0], -1, -1)
        found = self.qformer(query_embeds=queries, encoder_hidden_states=image_embeds, **read).last_hidden_state
        return self.projection(found[:, : self.query_tokens.shape[1]])


class InstructedQueries(ProjectedQueries):
    """The same of a Q-Former that reads the prompt too."""

    def forward(self, image_embeds: torch.Tensor, instruction_ids: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self._project(image_embeds, input_ids=instruction_ids)


def outputs_of(module: torch.nn.Module, samples: Sequence[tuple[np.ndarray, ...]]) -> list[Any]:
    """An array of each sample, or a tuple of arrays, as PyTorch computes them."""
    found = [module(*(torch.from_numpy(values) for values in sample)) for sample in samples]
    return [
        output.numpy() if isinstance(output, torch.Tensor) else tuple(one.numpy() for one in output) for output in found
    ]
