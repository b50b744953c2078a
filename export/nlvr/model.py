"""The model: one vision encoder for both images, a text encoder whose layers read them side by side, and a head.

Formulas and names of weights are those of the official code (https://github.com/salesforce/BLIP, blip_nlvr.py and
nlvr_encoder.py), the vision encoder's names Hugging Face's.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import BlipVisionModel
from transformers.models.blip.modeling_blip import BlipPreTrainedModel
from transformers.models.blip.modeling_blip_text import BlipTextModel, BlipTextSelfAttention

from catp.export.nlvr.config import BlipNlvr2Config

FALSE, TRUE = 0, 1
"""Places of the two answers among the head's logits."""


class TwinOutput(torch.nn.Module):
    """The end of a twin attention: what was read of each image projected, then the mean or a product of both."""

    def __init__(self, width: int, eps: float, merges: bool) -> None:
        super().__init__()
        self.LayerNorm = torch.nn.LayerNorm(width, eps=eps)
        self.dense0 = torch.nn.Linear(width, width)
        self.dense1 = torch.nn.Linear(width, width)
        self.merge_layer = torch.nn.Linear(2 * width, width) if merges else None

    def forward(self, first: torch.Tensor, second: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """[B, S, W] from what was read of each image, and the tokens that read; all [B, S, W]."""
        projected = self.dense0(first), self.dense1(second)
        if self.merge_layer is None:
            read = (projected[0] + projected[1]) / 2
        else:
            read = self.merge_layer(torch.cat(projected, -1))
        return self.LayerNorm(read + hidden)


class TwinCrossAttention(torch.nn.Module):
    """Cross-attention to two images, each with weights of its own."""

    def __init__(self, config: Any, merges: bool) -> None:
        super().__init__()
        self.self0 = BlipTextSelfAttention(config, is_cross_attention=True)
        self.self1 = BlipTextSelfAttention(config, is_cross_attention=True)
        self.output = TwinOutput(config.hidden_size, config.layer_norm_eps, merges)

    def forward(self, hidden: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        """[B, S, W] of hidden [B, S, W] and the images' tokens [B, I, Dv], of which none is padding."""
        read = [
            attend(hidden, encoder_hidden_states=image)[0]
            for attend, image in ((self.self0, first), (self.self1, second))
        ]
        return self.output(*read, hidden)


class BlipForNlvr2(BlipPreTrainedModel):
    """Whether a statement about two images is true."""

    config_class = BlipNlvr2Config

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        text = config.text_config
        self.vision_model = BlipVisionModel(config.vision_config)
        self.text_encoder = BlipTextModel(text, add_pooling_layer=False)
        for number, layer in enumerate(self.text_encoder.encoder.layer):
            layer.crossattention = TwinCrossAttention(text, number >= config.merge_from)
        self.cls_head = torch.nn.Sequential(
            torch.nn.Linear(text.hidden_size, text.hidden_size),
            torch.nn.ReLU(),
            torch.nn.Linear(text.hidden_size, 2),
        )
        self.post_init()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.text_encoder.get_input_embeddings()

    def set_input_embeddings(self, value: torch.nn.Module) -> None:
        self.text_encoder.set_input_embeddings(value)

    def forward(
        self, pixel_values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Logits of false and true, float32 [B, 2].

        Args:
            pixel_values: float32 [2B, 3, H, W], all first images before all second ones.
            input_ids: int64 [B, S], padded on the right.
            attention_mask: int64 [B, S], 0 where a pad is.
        """
        first, second = self.vision_model(pixel_values).last_hidden_state.chunk(2)
        return self.judge(input_ids, attention_mask, first, second)

    def judge(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, first: torch.Tensor, second: torch.Tensor
    ) -> torch.Tensor:
        """As `forward`, from the tokens [B, I, Dv] of the first and of the second images."""
        hidden = self.text_encoder.embeddings(input_ids)
        unseen = (1.0 - attention_mask[:, None, None, :].to(hidden.dtype)) * torch.finfo(hidden.dtype).min
        for layer in self.text_encoder.encoder.layer:
            hidden = read_both(layer, hidden, unseen, first, second)
        return self.cls_head(hidden[:, 0])


def read_both(
    layer: Any, hidden: torch.Tensor, mask: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    """One layer of the text encoder, [B, S, W]; `mask` as the layer's self-attention takes it."""
    attended, _ = layer.attention(hidden, attention_mask=mask)
    return layer.feed_forward_chunk(layer.crossattention(attended, first, second))
