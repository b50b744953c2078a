"""Names of CLIP's weights: those of OpenAI's code (https://github.com/openai/CLIP, model.py) in Hugging Face's class.

MADTP's code adds `space_dict`, and to each block `query_model.q_map`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from catp.export.checkpoints.madtp import SPACE_DICT, query_map

LEFT_OUT = (
    *("visual_m", "transformer_m", "token_embedding_m", "ln_final_m", "text_projection_m", "positional_embedding_m"),
    *("image_queue", "text_queue", "idx_queue", "ptr_queue", "input_resolution", "context_length", "vocab_size"),
)
"""First parts of names that only training reads, and sizes that shapes tell."""

_TEXT = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_VISION = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
_TURNED = ("text_projection", "visual.proj")
"""Those that rows are multiplied with from the right, where Hugging Face has a linear layer."""

_BLOCK = {
    "ln_1": "layer_norm1",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_IN_BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d{1,4})\.(.+?)[._](weight|bias)")
_MAP = "query_model.q_map.0"


@dataclass(frozen=True)
class Part:
    """A weight of Hugging Face's class, or of `madtp.safetensors`, and which part it is of an official one."""

    name: str
    third: int | None = None  # of the rows of a joint projection: 0 queries, 1 keys, 2 values
    turned: bool = False

    def of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Its shape, of that of the official one."""
        if self.third is not None:
            return (shape[0] // 3, *shape[1:])
        return shape[::-1] if self.turned else shape

    def take(self, value: torch.Tensor) -> torch.Tensor:
        """Its values, of the official one's."""
        if self.third is not None:
            return value.chunk(3)[self.third].clone()
        return value.t().contiguous() if self.turned else value


def parts_of(name: str) -> list[Part]:
    """The weights that an official one becomes; none: it is unknown."""
    if name == SPACE_DICT:
        return [Part(SPACE_DICT)]
    if name in _TEXT or name in _VISION:
        return [Part((_TEXT | _VISION)[name], turned=name in _TURNED)]
    found = _IN_BLOCK.fullmatch(name)
    if found is None:
        return []
    model, layer, part, kind = "vision_model" if found[1] else "text_model", int(found[2]), found[3], found[4]
    if part == _MAP:
        return [Part(query_map(model, layer, kind))]
    stem = f"{model}.encoder.layers.{layer}"
    if part == "attn.in_proj":
        return [Part(f"{stem}.self_attn.{which}_proj.{kind}", third) for third, which in enumerate("qkv")]
    return [Part(f"{stem}.{_BLOCK[part]}.{kind}")] if part in _BLOCK else []
