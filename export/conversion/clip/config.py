"""Sizes of a CLIP, from the shapes of its weights, as Hugging Face's configuration."""

from __future__ import annotations

from typing import Any

from transformers import CLIPConfig

from catp.export.conversion.blip_config import Shapes, Sizes


def read_config(where: str, shapes: Shapes) -> Any:
    """The CLIPConfig; a text's token ids are those of the tokenizer.

    What no shape tells is as in OpenAI's code: heads are 64 wide, and the activation is its approximation of GELU.

    Args:
        where: the weights are, for the message.
        shapes: of weights, by Hugging Face's names.

    Raises:
        UsageError: a weight that tells a size is missing, or of a shape that a CLIP can't have.
    """
    sizes = Sizes(where, shapes)
    positions, width = sizes.of("vision_model.embeddings.position_embedding.weight", "PW")
    projected = sizes.of("text_projection.weight", "OW")[0]
    vision = sizes.vision(positions, width)
    rows, width = sizes.of("text_model.embeddings.token_embedding.weight", "VW")
    text = {
        "vocab_size": rows,
        "hidden_size": width,
        "intermediate_size": sizes.of("text_model.encoder.layers.0.mlp.fc1.weight", "IW")[0],
        "num_hidden_layers": sizes.layers("text_model.encoder.layers."),
        "num_attention_heads": sizes.heads("text encoder", width),
        "max_position_embeddings": sizes.of("text_model.embeddings.position_embedding.weight", "PW")[0],
    }
    shared = {"hidden_act": "quick_gelu", "projection_dim": projected, "layer_norm_eps": 1e-5}
    config: Any = CLIPConfig(text_config=text | shared, vision_config=vision | shared, projection_dim=projected)
    config.architectures = ["CLIPModel"]
    return config
