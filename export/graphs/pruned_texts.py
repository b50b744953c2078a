"""text_embedding.onnx, image_text_matching.onnx and statement_encoder.onnx of BLIP's text encoder that prunes.

Inputs and outputs are those of the same graphs without pruning. Every layer keeps the same fraction of a text's own
tokens, pads not counted, after its self-attention and before it reads an image; the first token, which the heads read,
always stays.
"""

from __future__ import annotations

from typing import Any

import torch

from catp.export.graphs.text_pruning import PrunedTextLayers


class _Reader(torch.nn.Module):
    """A head over the first token of a text whose layers prune.

    Args:
        layers: each prunes by a fraction.
    """

    def __init__(self, layers: PrunedTextLayers, head: torch.nn.Module) -> None:
        super().__init__()
        self.layers, self.head = layers, head

    def read(self, text_ids: torch.Tensor, text_mask: torch.Tensor, *images: torch.Tensor) -> torch.Tensor:
        """[B, D'], the head's result, of a text alone, with an image, or with two."""
        hidden, own = self.layers.embed(text_ids), text_mask.sum(1) - 1
        images = tuple(image.to(hidden.dtype) for image in images)
        for index, layer in enumerate(self.layers.text_encoder.encoder.layer):
            hidden, own = self.layers.attend(index, hidden, own)
            hidden = layer.feed_forward_chunk(self.cross(layer, hidden, images))
        return self.head(hidden[:, 0]).float()

    def cross(self, layer: Any, hidden: torch.Tensor, images: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """A layer's tokens [B, L, W] once they have read the images."""
        if not images:
            return hidden
        return layer.crossattention(hidden, encoder_hidden_states=images[0])[0]


class PrunedTextEmbedding(_Reader):
    """A text read alone, projected."""

    def forward(self, text_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(self.read(text_ids, text_mask), dim=-1)


class PrunedImageTextMatching(_Reader):
    """A text that also reads the image; the head says no or yes."""

    def forward(self, image_embeds: torch.Tensor, text_ids: torch.Tensor, text_mask: torch.Tensor) -> torch.Tensor:
        return self.read(text_ids, text_mask, image_embeds)


class PrunedStatementEncoder(_Reader):
    """A statement that reads both images side by side; the head says false or true."""

    def forward(
        self,
        text_ids: torch.Tensor,
        text_mask: torch.Tensor,
        first_image_embeds: torch.Tensor,
        second_image_embeds: torch.Tensor,
    ) -> torch.Tensor:
        return self.read(text_ids, text_mask, first_image_embeds, second_image_embeds)

    def cross(self, layer: Any, hidden: torch.Tensor, images: tuple[torch.Tensor, ...]) -> torch.Tensor:
        first, second = images
        return layer.crossattention(hidden, first, second)
