"""A second image encoder, for tests: the ViT in two graphs, as an encoder that prunes between its layers may be cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from catp.export.graphs import Graph, interface_dtype
from catp.export.image_encoders import PlainEncoder
from catp.export.image_encoders.sizes import image_tokens, pair
from catp.runtime.bundle.chains import IMAGE_STAGES, Stage

SIDE = "two-steps"
STAGES = (
    Stage("patch_embedding", ("vision",)),
    Stage("patch_layers", ("vision",)),
    *IMAGE_STAGES["voted-queries"][1:],
)


class PatchEmbedding(torch.nn.Module):
    """pixel_values float32 [B,3,H,W] -> patches [B,I,Dv], turned round: the runtime has to turn them back."""

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        self.embeddings = vision_model.embeddings

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return -self.embeddings(pixel_values)


class PatchLayers(torch.nn.Module):
    """patches [B,I,Dv] -> image_embeds [B,I,Dv]."""

    def __init__(self, vision_model: Any) -> None:
        super().__init__()
        self.encoder = vision_model.encoder
        self.norm = vision_model.post_layernorm

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        embeds = self.norm(self.encoder(inputs_embeds=patches).last_hidden_state)
        return embeds.to(interface_dtype(embeds.dtype))


class TwoSteps(PlainEncoder):
    """What plain PyTorch says is the plain encoder's."""

    side = SIDE

    def graphs(self, model: Any, image_weights: bool) -> Iterator[Graph]:
        assert not image_weights
        config, batch = model.config.vision_config, {0: torch.export.Dim("batch")}
        height, width = pair(config.image_size)
        yield Graph(
            name="patch_embedding",
            module=PatchEmbedding(model.vision_model),
            example=(torch.zeros(2, 3, height, width),),
            input_names=["pixel_values"],
            output_names=["patches"],
            dynamic_shapes={"pixel_values": batch},
        )
        yield Graph(
            name="patch_layers",
            module=PatchLayers(model.vision_model),
            example=(torch.zeros(2, image_tokens(model.config), config.hidden_size),),
            input_names=["patches"],
            output_names=["image_embeds"],
            dynamic_shapes={"patches": batch},
        )
