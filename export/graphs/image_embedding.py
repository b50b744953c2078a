"""image_embedding.onnx: image_embeds [B,I,Dv] -> image_vector float32 [B,Dt] of length 1.

The image side of contrastive scores, of models that compare one vector of a picture with one of a text: the projection
of its CLS token. How many image tokens there are is free: an encoder may have pruned some.
"""

from __future__ import annotations

import torch

from catp.export.graphs import Graph, interface_dtype


class ImageEmbedding(torch.nn.Module):
    """CLS, the layer norm that the vision encoder has for it alone, if any, and the projection."""

    def __init__(self, projection: torch.nn.Module, norm: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.projection, self.norm = projection, norm

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        cls = image_embeds[:, 0].to(next(self.projection.parameters()).dtype)
        projected = self.projection(cls if self.norm is None else self.norm(cls))
        return torch.nn.functional.normalize(projected.float(), dim=-1)


def graph(module: ImageEmbedding, width: int) -> Graph:
    """Args: `width`: of an image token."""
    dtype = interface_dtype(next(module.projection.parameters()).dtype)
    return Graph(
        name="image_embedding",
        module=module,
        example=(torch.zeros(2, 7, width, dtype=dtype),),
        input_names=["image_embeds"],
        output_names=["image_vector"],
        dynamic_shapes={"image_embeds": {0: torch.export.Dim("batch"), 1: torch.export.Dim("image_tokens")}},
    )
