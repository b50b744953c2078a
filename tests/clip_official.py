"""CLIPs as MADTP's official code saves and runs them, from tiny random Hugging Face models.

Names and formulas are written out here, from that code (https://github.com/double125/MADTP, clip/model.py, clip/mock.py
and models/utils.py), and not taken from what is tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from checkpoints import clip_tokenizer
from transformers import CLIPConfig, CLIPModel

ENTRIES, ENTRY = 7, 96
"""Rows of the dictionary, and their width: neither encoder's."""

# The official name, then Hugging Face's.
SINGLE = """
visual.class_embedding                  vision_model.embeddings.class_embedding
visual.positional_embedding             vision_model.embeddings.position_embedding.weight
visual.conv1.weight                     vision_model.embeddings.patch_embedding.weight
visual.ln_pre.weight                    vision_model.pre_layrnorm.weight
visual.ln_pre.bias                      vision_model.pre_layrnorm.bias
visual.ln_post.weight                   vision_model.post_layernorm.weight
visual.ln_post.bias                     vision_model.post_layernorm.bias
token_embedding.weight                  text_model.embeddings.token_embedding.weight
positional_embedding                    text_model.embeddings.position_embedding.weight
ln_final.weight                         text_model.final_layer_norm.weight
ln_final.bias                           text_model.final_layer_norm.bias
logit_scale                             logit_scale
"""
TURNED = """
visual.proj                             visual_projection.weight
text_projection                         text_projection.weight
"""
LAYER = """
ln_1.weight            layer_norm1.weight
ln_1.bias              layer_norm1.bias
attn.out_proj.weight   self_attn.out_proj.weight
attn.out_proj.bias     self_attn.out_proj.bias
ln_2.weight            layer_norm2.weight
ln_2.bias              layer_norm2.bias
mlp.c_fc.weight        mlp.fc1.weight
mlp.c_fc.bias          mlp.fc1.bias
mlp.c_proj.weight      mlp.fc2.weight
mlp.c_proj.bias        mlp.fc2.bias
"""
COPIED = ("visual", "transformer", "token_embedding", "ln_final", "text_projection", "positional_embedding")


def tiny_clip(seed: int = 3, text_layers: int = 2) -> Any:
    """Heads of 64, as OpenAI's; two and one of them, and weights large enough that each one matters."""
    torch.manual_seed(seed)
    rows = len(clip_tokenizer())
    shared = {"projection_dim": 24, "hidden_act": "quick_gelu"}
    vision = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 2,
              "image_size": 56, "patch_size": 8}  # fmt: skip
    text = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": text_layers, "num_attention_heads": 1,
            "vocab_size": rows, "max_position_embeddings": 77, "bos_token_id": rows - 2,
            "eos_token_id": rows - 1, "pad_token_id": rows - 1}  # fmt: skip
    config = CLIPConfig(vision_config=vision | shared, text_config=text | shared, projection_dim=24)
    model = CLIPModel._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.5 if "position" in name else 0.12)
        model.logit_scale.fill_(3.1)
    return model


def official_names(vision_layers: int, text_layers: int) -> dict[str, str]:
    """Official name of each weight that is one in both, by Hugging Face's; joint projections are not among them."""
    names = {ours: official for official, ours in (line.split() for line in SINGLE.strip().splitlines())}
    for stem, ours, layers in (
        ("visual.transformer", "vision_model", vision_layers),
        ("transformer", "text_model", text_layers),
    ):
        for layer in range(layers):
            for official, name in (line.split() for line in LAYER.strip().splitlines()):
                names[f"{ours}.encoder.layers.{layer}.{name}"] = f"{stem}.resblocks.{layer}.{official}"
    return names


def official_weights(model: Any, guided: bool = True) -> dict[str, torch.Tensor]:
    """What the official code calls a model's weights, momentum copies included, with guidance of its own."""
    state = model.state_dict()
    config = model.config
    weights = {
        official: state[name]
        for name, official in official_names(
            config.vision_config.num_hidden_layers, config.text_config.num_hidden_layers
        ).items()
    }
    weights |= {
        official: state[name].t().contiguous() for official, name in map(str.split, TURNED.strip().splitlines())
    }
    generator = torch.Generator().manual_seed(8)
    for stem, ours, part in (
        ("visual.transformer", "vision_model", config.vision_config),
        ("transformer", "text_model", config.text_config),
    ):
        for layer in range(part.num_hidden_layers):
            attention = f"{ours}.encoder.layers.{layer}.self_attn"
            for kind in ("weight", "bias"):
                joint = [state[f"{attention}.{which}_proj.{kind}"] for which in "qkv"]
                weights[f"{stem}.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(joint)
            q_map = f"{stem}.resblocks.{layer}.query_model.q_map.0"
            if guided:
                weights[f"{q_map}.weight"] = 0.2 * torch.randn(ENTRY, part.hidden_size, generator=generator)
                weights[f"{q_map}.bias"] = 0.2 * torch.randn(ENTRY, generator=generator)
    for name, value in list(weights.items()):
        first, dot, rest = name.partition(".")
        if first in COPIED:
            weights[f"{first}_m{dot}{rest}"] = value.clone()
    if guided:
        weights["space_dict"] = 0.2 * torch.randn(ENTRIES, ENTRY, generator=generator)
    weights |= {"image_queue": torch.ones(24, 8), "text_queue": torch.ones(24, 8)}
    weights |= {"idx_queue": torch.full((1, 8), -100), "ptr_queue": torch.zeros(1, dtype=torch.long)}
    return weights


def save_official_clip(path: Path, temperature: float | None = 1.25) -> Any:
    """The model whose weights the file then has; without a temperature, as before MADTP."""
    model = tiny_clip()
    content = {"model": official_weights(model, temperature is not None), "epoch": 1}
    torch.save(content if temperature is None else {**content, "temperature": temperature}, path)
    return model


@torch.no_grad()
def official_vectors(
    weights: dict[str, torch.Tensor], pixels: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, list[int]]:
    """Vectors [B, D] of pictures as the official code gives them, and how many tokens each block keeps.

    Args:
        pixels: float32 [B, 3, H, W].
    """
    width, heads = 128, 2
    x = torch.nn.functional.conv2d(pixels, weights["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
    x = (
        torch.cat([weights["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
        + weights["visual.positional_embedding"]
    )
    x = _norm(x, weights, "visual.ln_pre")
    kept = []
    for number in range(3):
        block = {
            name.removeprefix(f"visual.transformer.resblocks.{number}."): value
            for name, value in weights.items()
            if name.startswith(f"visual.transformer.resblocks.{number}.")
        }
        mapped = x[:, 1:] @ block["query_model.q_map.0.weight"].T + block["query_model.q_map.0.bias"]
        token_attn = mapped @ weights["space_dict"].T
        q, k, v = (
            part.unflatten(2, (heads, -1)).transpose(1, 2)
            for part in (_norm(x, block, "ln_1") @ block["attn.in_proj_weight"].T + block["attn.in_proj_bias"]).chunk(
                3, 2
            )
        )
        maps = torch.softmax(q @ k.transpose(2, 3) / (width // heads) ** 0.5, -1)
        read = maps @ v
        x = x + read.transpose(1, 2).flatten(2) @ block["attn.out_proj.weight"].T + block["attn.out_proj.bias"]
        norms = read[:, :, 1:].norm(dim=-1)
        cls_attn = (maps[:, :, 0, 1:] * norms / (norms.sum(1, keepdim=True) + 1e-8)).sum(1)
        x, count = _reduce(x, maps, token_attn, cls_attn, temperature)
        kept.append(count)
        inner = _norm(x, block, "ln_2") @ block["mlp.c_fc.weight"].T + block["mlp.c_fc.bias"]
        x = x + inner * torch.sigmoid(1.702 * inner) @ block["mlp.c_proj.weight"].T + block["mlp.c_proj.bias"]
    return _norm(x[:, 0], weights, "visual.ln_post") @ weights["visual.proj"], kept


def _norm(x: torch.Tensor, weights: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])


def _reduce(
    x: torch.Tensor, maps: torch.Tensor, token_attn: torch.Tensor, cls_attn: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, int]:
    """`Reduce_token`."""
    self_attn = maps[:, :, 1:, 1:].max(1)[0].sum(1)
    self_attn = self_attn / (self_attn.sum(1, keepdim=True) + 1e-8)
    found = token_attn.max(2)[0]
    score = (self_attn + found / (found.sum(1, keepdim=True) + 1e-8) + cls_attn) / 3
    shares = torch.softmax(token_attn / temperature, 1).permute(0, 2, 1)
    threshold = torch.bmm(shares, score.unsqueeze(-1)).min(1)[0]
    tokens = score.shape[1]
    count = int((score > threshold).sum(1).max())
    if count <= 1 or tokens - count <= 1:
        return x, tokens
    order = score.argsort(1, descending=True)[:, :, None].expand(-1, -1, x.shape[2])
    ordered, weights = x[:, 1:].gather(1, order), score.sort(1, descending=True)[0][:, count:]
    merged = torch.bmm((weights / (weights.sum(1, keepdim=True) + 1e-8)).unsqueeze(1), ordered[:, count:])
    return torch.cat([x[:, :1], ordered[:, :count], merged], 1), count
