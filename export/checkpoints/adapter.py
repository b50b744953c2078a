"""A LoRA adapter as PEFT saves it, merged into the weights of the checkpoint that it was trained on.

PEFT (https://github.com/huggingface/peft) writes `adapter_config.json` and `adapter_model.safetensors`: for a weight W
[out, in] two matrices A [r, in] and B [out, r], which stand for W + scale B A. Modules that were trained as a whole
(`modules_to_save`: heads, embeddings, biases) are there in full.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from catp.export.checkpoints.adapter_config import CONFIG, AdapterConfig, read_config
from catp.export.checkpoints.reading import reading
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import is_dir

WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PAIRS = ((".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"))


def merge_adapter(model: torch.nn.Module, adapter: str) -> None:
    """Merge a LoRA adapter into the parameters of `model`; what changes becomes float32, in which it is computed.

    Args:
        adapter: a local folder or a Hub id.

    Raises:
        UsageError: it is no adapter, another kind than plain LoRA, or one of another model.
        CatpError: its weights are broken.
    """
    config, tensors = _read(adapter)
    _resize_vocabulary(model, tensors)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for name, value in _merged(config, tensors, model, parameters).items():
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


def _read(adapter: str) -> tuple[AdapterConfig, dict[str, torch.Tensor]]:
    config_path, weights_path = adapter_file(adapter, CONFIG), adapter_file(adapter, WEIGHTS)
    if config_path is None or weights_path is None:
        missing = CONFIG if config_path is None else WEIGHTS
        if not is_dir(Path(adapter)):
            raise UsageError(
                f"adapter {adapter}: no such folder here, and the Hub gave no {missing} of it; "
                "check the name and the network, or give a folder that PEFT's save_pretrained() wrote"
            )
        raise UsageError(f"adapter {adapter}: it has no {missing}; give a folder that PEFT's save_pretrained() wrote")
    config = read_config(adapter, config_path)
    with reading(f"adapter {adapter}: its weights are broken", "fetch or save them again"):
        tensors = load_file(weights_path)
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
    except (OSError, ValueError):  # there is none, or the name can't be one
        return None
    return None if found is None else Path(found)


def _merged(
    config: AdapterConfig,
    tensors: Mapping[str, torch.Tensor],
    model: torch.nn.Module,
    parameters: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Parameters by name, float32, as they are with the adapter."""
    adapter = config.adapter
    halves = tuple(suffix for pair in _PAIRS for suffix in pair)
    changed = {name: tensor.float() for name, tensor in tensors.items() if not name.endswith(halves)}
    for name in changed:
        _known(name, parameters, adapter)
    for suffix_a, suffix_b in _PAIRS:
        with_a = {name.removesuffix(suffix_a) for name in tensors if name.endswith(suffix_a)}
        with_b = {name.removesuffix(suffix_b) for name in tensors if name.endswith(suffix_b)}
        for module in sorted(with_a ^ with_b):
            there, lacks = (suffix_a, suffix_b) if module in with_a else (suffix_b, suffix_a)
            raise CatpError(f"adapter {adapter}: {module + there} has no {module + lacks} beside it; save it again")
        for module in sorted(with_a):
            weight = f"{module}.weight"
            base = changed.get(weight, _known(weight, parameters, adapter)).float()
            a, b = tensors[module + suffix_a].float(), tensors[module + suffix_b].float()
            _check_rank(config, module, a, b)
            delta = config.scale(module) * (b.flatten(1) @ a.flatten(1))
            if isinstance(model.get_submodule(module), torch.nn.Embedding | Conv1D):
                delta = delta.T  # these are [words, width] and [in, out]
            _check_shape(weight, delta, base.reshape(len(base), -1), adapter)
            changed[weight] = base + delta.reshape(base.shape)
    return changed


def _check_rank(config: AdapterConfig, module: str, a: torch.Tensor, b: torch.Tensor) -> None:
    """Raises UsageError where PEFT would not give these matrices to that module."""
    if a.ndim < 2 or b.ndim < 2 or not len(a) == b.shape[1] == config.rank(module):
        raise UsageError(
            f"adapter {config.adapter}: {module} has matrices of {list(a.shape)} and {list(b.shape)}, and its rank in "
            f"{CONFIG} is {config.rank(module)}; save the adapter again"
        )
    if not config.targets(module):
        raise UsageError(
            f"adapter {config.adapter}: {CONFIG} leaves out {module}, for which it has weights; save the adapter again"
        )


def _known(name: str, parameters: Mapping[str, torch.Tensor], adapter: str) -> torch.Tensor:
    if name not in parameters:
        raise UsageError(f"adapter {adapter}: it changes {name}, which the model does not have; is it for another one?")
    return parameters[name]


def _check_shape(name: str, found: torch.Tensor, wanted: torch.Tensor, adapter: str) -> None:
    if found.shape != wanted.shape:
        shapes = f"{list(found.shape)} there and {list(wanted.shape)} in the model"
        raise UsageError(f"adapter {adapter}: {name} is {shapes}; is it for another one?")
