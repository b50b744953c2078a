"""A LoRA adapter as PEFT saves it, merged into the weights of the checkpoint that it was trained on.

PEFT (https://github.com/huggingface/peft) writes `adapter_config.json` and `adapter_model.safetensors`: for a weight W
[out, in] two matrices A [r, in] and B [out, r], which stand for W + scale B A. Modules that were trained as a whole
(`modules_to_save`: heads, embeddings, biases) are there in full.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import cached_file

from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import is_dir

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))


def merge_adapter(model: torch.nn.Module, adapter: str) -> None:
    """Merge a LoRA adapter into the parameters of `model`; what changes becomes float32, in which it is computed.

    Args:
        adapter: a local folder or a Hub id.

    Raises:
        UsageError: it is no adapter, another kind than LoRA, or one of another model.
        CatpError: its weights are broken.
    """
    config, tensors = _read(adapter)
    _resize_vocabulary(model, tensors)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in _merged(config, tensors, parameters, adapter).items():
            _check_shape(name, value, parameters[name], adapter)
            # In this module alone: an adapter of a head that was tied to the embeddings leaves those as they were.
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, torch.nn.Parameter(value, requires_grad=False))


def _resize_vocabulary(model: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make room for the tokens that were added before training: PEFT then saves the embeddings in full."""
    embeddings = model.get_input_embeddings()
    (name,) = (name for name, module in model.named_modules() if module is embeddings)
    saved = tensors.get(f"{name}.weight")
    if saved is not None and saved.ndim == 2 and len(saved) != len(embeddings.weight):
        model.resize_token_embeddings(len(saved), mean_resizing=False)


def _read(adapter: str) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    config_path, weights_path = adapter_file(adapter, CONFIG), adapter_file(adapter, WEIGHTS)
    if config_path is None or weights_path is None:
        missing = CONFIG if config_path is None else WEIGHTS
        raise UsageError(f"adapter {adapter}: it has no {missing}; give a folder that PEFT's save_pretrained() wrote")
    try:
        config = json.loads(config_path.read_text())
        kind = config["peft_type"]
        float(config["lora_alpha"]) if kind == "LORA" else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"adapter {adapter}: {CONFIG} is not one of PEFT's ({error!r})") from None
    unknown = [name for name in ("use_dora", "lora_bias", "use_qalora", "trainable_token_indices") if config.get(name)]
    if kind != "LORA" or unknown:
        found = f"peft_type {kind!r}" + "".join(f", {name}" for name in unknown)
        raise UsageError(
            f"adapter {adapter}: it is {found}; accepted: plain LoRA; merge it with PEFT's merge_and_unload()"
        )
    try:
        tensors = load_file(weights_path)
    except (OSError, SafetensorError) as error:
        raise CatpError(f"adapter {adapter}: its weights are broken ({error}); fetch or save them again") from None
    return config, {_plain(name): value for name, value in tensors.items() if ".original_module." not in name}


def _plain(name: str) -> str:
    """The model's own name of what PEFT saved: its wrappers are part of some of its names."""
    return name.removeprefix(_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")


def adapter_file(adapter: str, name: str) -> Path | None:
    """A file of an adapter, fetched where that is on the Hub; None where it has none of that name."""
    if is_dir(Path(adapter)):
        path = Path(adapter) / name
        return path if path.is_file() else None
    try:
        found = cached_file(adapter, name)
    except OSError:
        return None
    return None if found is None else Path(found)


def _merged(
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    parameters: Mapping[str, torch.Tensor],
    adapter: str,
) -> dict[str, torch.Tensor]:
    """Parameters by name, float32, as they are with the adapter."""
    halves = tuple(suffix for pair in _PAIRS for suffix in pair)
    changed = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(halves)}
    for name in changed:
        _known(name, parameters, adapter)
    for name in tensors:
        for suffix_a, suffix_b in _PAIRS:
            if not name.endswith(suffix_a):
                continue
            module = name.removesuffix(suffix_a)
            weight = f"{module}.weight"
            base = changed.get(weight, _known(weight, parameters, adapter)).float()
            if module + suffix_b not in tensors:
                raise CatpError(f"adapter {adapter}: {name} has no {module + suffix_b} beside it; save it again")
            a, b = tensors[name].float(), tensors[module + suffix_b].float()
            delta = _scale(config, module, len(a)) * (b.flatten(1) @ a.flatten(1))
            # Embeddings are [words, width], and fan_in_fan_out ones [in, out].
            if suffix_a.endswith("embedding_A") or config.get("fan_in_fan_out"):
                delta = delta.T
            _check_shape(weight, delta, base.flatten(1), adapter)
            changed[weight] = base + delta.reshape(base.shape)
    return changed


def _known(name: str, parameters: Mapping[str, torch.Tensor], adapter: str) -> torch.Tensor:
    if name not in parameters:
        raise UsageError(f"adapter {adapter}: it changes {name}, which the model does not have; is it for another one?")
    return parameters[name]


def _check_shape(name: str, found: torch.Tensor, wanted: torch.Tensor, adapter: str) -> None:
    if found.shape != wanted.shape:
        shapes = f"{list(found.shape)} there and {list(wanted.shape)} in the model"
        raise UsageError(f"adapter {adapter}: {name} is {shapes}; is it for another one?")


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) where the adapter is rank-stabilised."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)),
        config["lora_alpha"],
    )
    return float(alpha) / (rank**0.5 if config.get("use_rslora") else rank)
