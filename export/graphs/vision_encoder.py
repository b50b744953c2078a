"""vision_encoder.onnx: pixel_values float32 [B,3,H,W] -> image_embeds [B,I,Dv].

Where the vote weighs image tokens, also image_weights float32 [B,I].
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Blip2VisionModel

from catp.export.graphs import Graph, interface_dtype, operators


class VisionEncoder(torch.nn.Module):
    """The ViT, layer norm included, whose tokens (CLS first) the Q-Former reads."""

    def __init__(self, vision_model: Blip2VisionModel, with_image_weights: bool = False) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.with_image_weights = with_image_weights

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """image_embeds [B,I,Dv], and the attention each image token receives in the last layer, of mean 1."""
        last: Any = self.vision_model.encoder.layers[-1].self_attn
        with operators.recorded_attention([last] if self.with_image_weights else []) as maps:
            image_embeds = self.vision_model(pixel_values).last_hidden_state
        image_embeds = image_embeds.to(interface_dtype(image_embeds.dtype))
        return (image_embeds, maps[last].mean(1).sum(1)) if self.with_image_weights else image_embeds


def graph(vision_model: Blip2VisionModel, height: int, width: int, with_image_weights: bool = False) -> Graph:
    return Graph(
        name="vision_encoder",
        module=VisionEncoder(vision_model, with_image_weights),
        example=(torch.zeros(2, 3, height, width),),
        input_names=["pixel_values"],
        output_names=["image_embeds", "image_weights"] if with_image_weights else ["image_embeds"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
    )
