"""vision_encoder.onnx: pixel_values float32 [B,3,H,W] -> image_embeds [B,I,Dv]."""

from __future__ import annotations

import torch
from transformers import Blip2VisionModel

from catp.export.graphs import Graph


class VisionEncoder(torch.nn.Module):
    """The ViT, layer norm included, whose tokens (CLS first) the Q-Former reads."""

    def __init__(self, vision_model: Blip2VisionModel) -> None:
        super().__init__()
        self.vision_model = vision_model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.vision_model(pixel_values).last_hidden_state


def graph(vision_model: Blip2VisionModel, height: int, width: int) -> Graph:
    return Graph(
        name="vision_encoder",
        module=VisionEncoder(vision_model),
        example=(torch.zeros(2, 3, height, width),),
        input_names=["pixel_values"],
        output_names=["image_embeds"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}},
    )
