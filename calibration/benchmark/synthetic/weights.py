"""Random weights of a model without any, drawn and saved layer by layer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARD = 1_000_000_000
"""Bytes from which on weights are written to a file of the checkpoint."""
WORD_EMBEDDINGS = 0.05
"""Standard deviation. OPT's head is the same table: with larger ones the best tokens differ by rounding errors."""
LOGIT_SCALE = 4.6052
"""Logarithm of 100, which CLIP's training ends with."""


def save_weights(model: Any, folder: Path) -> None:
    """Draw the weights of a model without any and save them, layer by layer: a file's worth is in memory at most."""
    from safetensors.torch import save_file

    index: dict[str, str] = {}
    size = 0
    shard: dict[str, Any] = {}

    def save() -> None:
        name = f"model-{len(set(index.values())) + 1:05}.safetensors"
        save_file(shard, folder / name, metadata={"format": "pt"})
        index.update(dict.fromkeys(shard, name))
        shard.clear()

    for weights in draw_weights(model):
        shard |= weights
        size += sum(tensor.nbytes for tensor in weights.values())
        if sum(tensor.nbytes for tensor in shard.values()) > SHARD:
            save()
    if shard:
        save()
    content = {"metadata": {"total_size": size}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content, indent=2) + "\n")


def draw_weights(model: Any) -> Iterator[dict[str, Any]]:
    """Random weights by name, of one layer of a model on the meta device after the other, and of all the rest."""
    import torch

    from catp.export.demo.untrained import spread_weights
    from catp.export.families import family_of

    spread = {"blip-2": spread_weights, "clip": _spread_clip}.get(model.config.model_type, _spread_blip)
    writer = getattr(model, "text_decoder", model)
    head = writer.get_output_embeddings()
    tables = [family_of(model.config, "synthetic").word_embeddings(model)]
    if writer is not model:  # BLIP's decoder has words of its own where an encoder reads the question
        tables.append(writer.get_input_embeddings())
    lists = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
    nested = {part for outer in lists for part in outer.modules() if part is not outer}  # as T5's layers have them
    layers = [list(layer.modules()) for part in lists if part not in nested for layer in part]
    inside = {module for layer in layers for module in layer}
    for piece in (*layers, [module for module in model.modules() if module not in inside]):
        for module in piece:
            module.to_empty(device="cpu", recurse=False)
        model.tie_weights(recompute_mapping=False)
        for module in piece:
            model._init_weights(module)
        # Of the whole model, all of which costs nothing that is on the meta device.
        spread(model)
        with torch.no_grad():
            for table in tables:
                if table in piece:
                    tied = head is not None and head.weight is table.weight
                    table.weight.normal_(0, WORD_EMBEDDINGS if tied else 1)
        copies = model.all_tied_weights_keys
        yield {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta and name not in copies}
        for module in piece:
            module.to_empty(device="meta", recurse=False)


def _spread_blip(model: Any) -> None:
    """Random weights with which pictures and words count: Hugging Face's image tokens are all alike."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5)
        model.vision_model.embeddings.position_embedding.normal_(0, 1)


def _spread_clip(model: Any) -> None:
    """Random weights with which pictures and words count, as in `_spread_blip`."""
    import torch

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                module.weight.normal_(0, module.weight[0].numel() ** -0.5)
        for part in (model.vision_model, model.text_model):
            part.embeddings.position_embedding.weight.normal_(0, 1)
        model.logit_scale.fill_(LOGIT_SCALE)
