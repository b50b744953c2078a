"""Checkpoints for NLVR2 as the official code of BLIP and MADTP saves them, from tiny random models.

The names are written out here, one layer of each kind, and not taken from what is tested.
"""

from __future__ import annotations

from typing import Any

import torch
from blip_official import ROWS, TEXT, VISION

from catp.export.nlvr import BlipForNlvr2, BlipNlvr2Config

TWINS = """
crossattention.self0.query crossattention.self0.key crossattention.self0.value
crossattention.self1.query crossattention.self1.key crossattention.self1.value
crossattention.output.dense0 crossattention.output.dense1 crossattention.output.LayerNorm
"""
MERGE = "crossattention.output.merge_layer"
HEAD = "cls_head.0.weight cls_head.0.bias cls_head.2.weight cls_head.2.bias"


def official_names(vision_layers: int, text_layers: int, merge_from: int) -> dict[str, str]:
    """Official names of all weights, by those of our module; written from BLIP's nlvr_encoder.py."""
    names = {}
    for ours, official in (line.split() for line in VISION.strip().splitlines()):
        for layer in range(vision_layers if ".N." in ours else 1):
            names[ours.replace(".N.", f".{layer}.")] = official.replace(".N.", f".{layer}.")
    single = [name for name in TEXT.split() if ".N." not in name]
    layered = [name for name in TEXT.split() if ".N." in name and "crossattention" not in name]
    layered += [f"encoder.layer.N.{twin}.{kind}" for twin in TWINS.split() for kind in ("weight", "bias")]
    found = [*single, *(name.replace(".N.", f".{layer}.") for layer in range(text_layers) for name in layered)]
    found += [
        f"encoder.layer.{layer}.{MERGE}.{kind}"
        for layer in range(merge_from, text_layers)
        for kind in ("weight", "bias")
    ]
    return names | {name: name for name in (*(f"text_encoder.{part}" for part in found), *HEAD.split())}


def tiny(merge_from: int = 1) -> Any:
    torch.manual_seed(5)
    layers = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BlipNlvr2Config(
        text_config={**layers, "intermediate_size": 160, "vocab_size": ROWS, "max_position_embeddings": 24,
                     "bos_token_id": ROWS - 2, "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3},
        vision_config={**layers, "intermediate_size": 192, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6},
        merge_from=merge_from,
    )  # fmt: skip
    model = BlipForNlvr2(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model


def content_of(model: Any, merge_from: int = 1) -> dict[str, Any]:
    """The content that BLIP's official code gives to `torch.save`."""
    state = model.state_dict()
    weights = {official: state[ours] for ours, official in official_names(2, 2, merge_from).items()}
    weights["text_encoder.embeddings.position_ids"] = torch.arange(24).expand((1, -1))
    return {"model": weights, "epoch": 3}


def with_guidance(content: dict[str, Any]) -> dict[str, Any]:
    guide = torch.randn(7, 128, generator=torch.Generator().manual_seed(1))
    return {**content, "model": {**content["model"], "space_dict": guide}, "temperature": 1.25}
