"""Conversion of a CLIP's weights to a Hugging Face folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPModel
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.utils import SAFE_WEIGHTS_NAME

from catp.export.checkpoints.madtp import SPACE_DICT, WEIGHTS
from catp.export.checkpoints.reading import reading
from catp.export.conversion.blip_config import Shapes
from catp.export.conversion.blip_names import Task
from catp.export.conversion.clip.config import read_config
from catp.export.conversion.clip.names import LEFT_OUT, Part, parts_of
from catp.export.conversion.weights import Values, check_names, check_shapes, write_weights
from catp.runtime.errors import UsageError

TASK = Task("texts and images", "CLIPModel", ())


def is_clip(names: Collection[str]) -> bool:
    """Whether weights of these official names are a CLIP's."""
    return {"visual", "transformer"} <= {name.partition(".")[0] for name in names}


def convert_clip(
    where: str, names: Mapping[str, str], shapes: Shapes, values: Values, folder: Path, tokenizer_source: str
) -> tuple[Any, int, tuple[str, ...], torch.Tensor | None]:
    """Write weights, configuration, tokenizer and image processor.

    Args:
        where: the weights are, for the message.
        names: official name to the stored one.
        shapes: by stored name.

    Returns:
        Hugging Face's configuration; how many weights its class has; official names that were left out; `space_dict`,
        None of a plain CLIP.

    Raises:
        UsageError: they are not a CLIP's, or the tokenizer is not.
    """
    left_out = tuple(name for name in names if name.partition(".")[0] in LEFT_OUT)
    parts: dict[str, tuple[str, Part]] = {}
    unknown = []
    for name, stored in names.items():
        if name in left_out:
            continue
        found = parts_of(name)
        parts |= {part.name: (stored, part) for part in found}
        unknown += [] if found else [name]
    found_shapes = {name: part.of(shapes[stored]) for name, (stored, part) in parts.items()}
    own = {name for name in parts if name == SPACE_DICT or ".q_map." in name}
    plain = {name: shape for name, shape in found_shapes.items() if name not in own}
    config = read_config(where, plain)
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in CLIPModel(config).state_dict().items()}
    wanted_own = _guidance_shapes(config, found_shapes[SPACE_DICT]) if SPACE_DICT in own else {}
    check_names(where, TASK, {**wanted, **wanted_own}, {name: name for name in parts}, unknown)
    check_shapes(where, {**wanted, **wanted_own}, found_shapes)
    tokenizer = _tokenizer(tokenizer_source, config.text_config)
    weights = {name: part.take(values.weight(stored)) for name, (stored, part) in parts.items()}
    write_weights(folder / SAFE_WEIGHTS_NAME, {name: weights[name] for name in wanted})
    if own:
        write_weights(folder / WEIGHTS, {name: weights[name].float() for name in sorted(own)})
    types = {weights[name].dtype for name in wanted}
    config.dtype = types.pop() if len(types) == 1 else torch.float32
    config.save_pretrained(folder)
    side = config.vision_config.image_size
    # The official evaluation resizes to a square, as BLIP's does, and crops nothing; means are the same.
    BlipImageProcessorPil(size={"height": side, "width": side}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return config, len(wanted), left_out, weights.get(SPACE_DICT)


def _guidance_shapes(config: Any, space_dict: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Shapes of MADTP's own weights, where the dictionary has this one."""
    entry = space_dict[-1] if len(space_dict) == 2 else 0
    found: dict[str, tuple[int, ...]] = {SPACE_DICT: (space_dict[0] if space_dict else 0, entry)}
    for model, part in (("vision_model", config.vision_config), ("text_model", config.text_config)):
        for layer in range(part.num_hidden_layers):
            found[f"{model}.{layer}.q_map.weight"] = (entry, part.hidden_size)
            found[f"{model}.{layer}.q_map.bias"] = (entry,)
    return found


def _tokenizer(source: str, config: Any) -> Any:
    """CLIP's tokenizer; ids of its tokens go into the configuration.

    Raises:
        UsageError: it has another number of tokens than the checkpoint has embeddings, or the one that ends a text is
            not the last: that is where the official code reads it.
    """
    with reading(f"--tokenizer {source}: it can't be loaded", "check the name and the network", UsageError):
        tokenizer: Any = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(tokenizer) != config.vocab_size or tokenizer.eos_token_id != config.vocab_size - 1:
        raise UsageError(
            f"--tokenizer {source}: it has {len(tokenizer)} tokens, and ends texts by the id {tokenizer.eos_token_id}; "
            f"the checkpoint has embeddings for {config.vocab_size}, the last one being that token; accepted: CLIP's, "
            "such as openai/clip-vit-large-patch14-336"
        )
    config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    tokenizer.model_max_length = config.max_position_embeddings
    return tokenizer
