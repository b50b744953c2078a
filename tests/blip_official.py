"""Checkpoints as the official code of BLIP and MADTP saves them, from tiny random Hugging Face models.

The names are written out here, one layer of each kind, and not taken from what is tested.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
)

CLASSES: dict[str, Any] = {
    "question answering": BlipForQuestionAnswering,
    "captions": BlipForConditionalGeneration,
    "retrieval": BlipForImageTextRetrieval,
}
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz?", "what", "is", "it", "red", "##s")
ROWS = len(WORDS) + 2

# Hugging Face's name, then the official one.
VISION = """
vision_model.embeddings.class_embedding               visual_encoder.cls_token
vision_model.embeddings.position_embedding            visual_encoder.pos_embed
vision_model.embeddings.patch_embedding.weight        visual_encoder.patch_embed.proj.weight
vision_model.embeddings.patch_embedding.bias          visual_encoder.patch_embed.proj.bias
vision_model.post_layernorm.weight                    visual_encoder.norm.weight
vision_model.post_layernorm.bias                      visual_encoder.norm.bias
vision_model.encoder.layers.N.layer_norm1.weight      visual_encoder.blocks.N.norm1.weight
vision_model.encoder.layers.N.layer_norm1.bias        visual_encoder.blocks.N.norm1.bias
vision_model.encoder.layers.N.self_attn.qkv.weight    visual_encoder.blocks.N.attn.qkv.weight
vision_model.encoder.layers.N.self_attn.qkv.bias      visual_encoder.blocks.N.attn.qkv.bias
vision_model.encoder.layers.N.self_attn.projection.weight  visual_encoder.blocks.N.attn.proj.weight
vision_model.encoder.layers.N.self_attn.projection.bias    visual_encoder.blocks.N.attn.proj.bias
vision_model.encoder.layers.N.layer_norm2.weight      visual_encoder.blocks.N.norm2.weight
vision_model.encoder.layers.N.layer_norm2.bias        visual_encoder.blocks.N.norm2.bias
vision_model.encoder.layers.N.mlp.fc1.weight          visual_encoder.blocks.N.mlp.fc1.weight
vision_model.encoder.layers.N.mlp.fc1.bias            visual_encoder.blocks.N.mlp.fc1.bias
vision_model.encoder.layers.N.mlp.fc2.weight          visual_encoder.blocks.N.mlp.fc2.weight
vision_model.encoder.layers.N.mlp.fc2.bias            visual_encoder.blocks.N.mlp.fc2.bias
"""
TEXT = """
embeddings.word_embeddings.weight
embeddings.position_embeddings.weight
embeddings.LayerNorm.weight
embeddings.LayerNorm.bias
encoder.layer.N.attention.self.query.weight
encoder.layer.N.attention.self.query.bias
encoder.layer.N.attention.self.key.weight
encoder.layer.N.attention.self.key.bias
encoder.layer.N.attention.self.value.weight
encoder.layer.N.attention.self.value.bias
encoder.layer.N.attention.output.dense.weight
encoder.layer.N.attention.output.dense.bias
encoder.layer.N.attention.output.LayerNorm.weight
encoder.layer.N.attention.output.LayerNorm.bias
encoder.layer.N.crossattention.self.query.weight
encoder.layer.N.crossattention.self.query.bias
encoder.layer.N.crossattention.self.key.weight
encoder.layer.N.crossattention.self.key.bias
encoder.layer.N.crossattention.self.value.weight
encoder.layer.N.crossattention.self.value.bias
encoder.layer.N.crossattention.output.dense.weight
encoder.layer.N.crossattention.output.dense.bias
encoder.layer.N.crossattention.output.LayerNorm.weight
encoder.layer.N.crossattention.output.LayerNorm.bias
encoder.layer.N.intermediate.dense.weight
encoder.layer.N.intermediate.dense.bias
encoder.layer.N.output.dense.weight
encoder.layer.N.output.dense.bias
encoder.layer.N.output.LayerNorm.weight
encoder.layer.N.output.LayerNorm.bias
"""
WORD_HEAD = """
text_decoder.cls.predictions.bias
text_decoder.cls.predictions.transform.dense.weight
text_decoder.cls.predictions.transform.dense.bias
text_decoder.cls.predictions.transform.LayerNorm.weight
text_decoder.cls.predictions.transform.LayerNorm.bias
text_decoder.cls.predictions.decoder.weight
text_decoder.cls.predictions.decoder.bias
"""
PROJECTIONS = "vision_proj.weight vision_proj.bias text_proj.weight text_proj.bias itm_head.weight itm_head.bias"


def official_names(task: str, vision_layers: int, text_layers: int) -> dict[str, str]:
    """Official names of all of a task's weights, by Hugging Face's."""
    pairs = [tuple(line.split()) for line in VISION.strip().splitlines()]
    names = _layered(dict(pairs), vision_layers)
    stems = {"question answering": ("text_encoder.", "text_decoder.bert."), "captions": ("text_decoder.bert.",)}
    for stem in stems.get(task, ("text_encoder.",)):
        names |= _layered({stem + name: stem + name for name in TEXT.split()}, text_layers)
    return names | {name: name for name in (PROJECTIONS if task == "retrieval" else WORD_HEAD).split()}


def _layered(names: dict[str, str], layers: int) -> dict[str, str]:
    single = {name: official for name, official in names.items() if ".N." not in name}
    return single | {
        name.replace(".N.", f".{layer}."): official.replace(".N.", f".{layer}.")
        for layer in range(layers)
        for name, official in names.items()
        if ".N." in name
    }


def tiny_blip(task: str, seed: int = 5, positions: int = 24, places: float = 0.1) -> Any:
    """Two heads, two layers of each kind, 16 patches; weights large enough that each one matters.

    Args:
        positions: tokens of a text at most.
        places: standard deviation of what tells one patch of one colour from another.
    """
    torch.manual_seed(seed)
    layers = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.1}
    text = {**layers, "intermediate_size": 160, "vocab_size": ROWS, "max_position_embeddings": positions}
    vision = {**layers, "intermediate_size": 192, "image_size": 32, "patch_size": 8, "layer_norm_eps": 1e-6}
    ids = {"bos_token_id": ROWS - 2, "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3}
    config = BlipConfig(text_config={**text, **ids}, vision_config=vision, image_text_hidden_size=24)
    model = CLASSES[task](config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
        model.vision_model.embeddings.position_embedding.mul_(places / 0.1)
    return model


def official_content(model: Any, task: str, temperature: object = 0.75) -> dict[str, Any]:
    """What the official code gives to `torch.save` for such a model, with guidance of seven vectors."""
    state = model.state_dict()
    names = official_names(task, 2, 2)
    weights = {official: state[name] for name, official in names.items()}
    for stem in ("text_encoder", "text_decoder.bert"):
        if f"{stem}.embeddings.LayerNorm.bias" in weights:
            positions = model.config.text_config.max_position_embeddings
            weights[f"{stem}.embeddings.position_ids"] = torch.arange(positions).expand((1, -1))
    if task == "retrieval":
        trained = ("visual_encoder", "text_encoder", "vision_proj", "text_proj")
        copies = {name: value for name, value in weights.items() if name.startswith(trained)}
        weights |= {name.replace(".", "_m.", 1): value.clone() for name, value in copies.items()}
        weights |= {name: torch.ones(24, 8) for name in ("image_queue", "text_queue")}
        weights |= {"idx_queue": torch.full((1, 8), -100), "ptr_queue": torch.zeros(1, dtype=torch.long)}
        weights["temp"] = torch.tensor(0.07)
    weights["space_dict"] = torch.randn(7, 128, generator=torch.Generator().manual_seed(1))
    return {"model": weights, "epoch": 2, "temperature": temperature}


def save_official(path: Path, task: str = "question answering", madtp: bool = True, **shape: Any) -> Any:
    """The model whose weights the file then has; as BLIP's own code saves it, without MADTP's part, if not `madtp`.

    Args:
        shape: of `tiny_blip`.
    """
    model = tiny_blip(task, **shape)
    content = official_content(model, task)
    if not madtp:
        del content["temperature"], content["model"]["space_dict"]
    torch.save(content, path)
    return model


def save_bert_tokenizer(folder: Path) -> Path:
    """BERT's kind, with words and letters."""
    BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder
