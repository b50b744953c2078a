"""The configuration of an adapter, `adapter_config.json`: what is understood of it, and what refuses the adapter.

PEFT (https://github.com/huggingface/peft, read at 0.21) computes much besides W + scale B A. A setting is either known
here to change nothing of that, or it has to be off.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catp.runtime.errors import UsageError

CONFIG = "adapter_config.json"

_READ = (
    "peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights", "bias",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
)  # fmt: skip
"""Settings that are applied below, or whose effect is in the file of weights: biases and whole modules are there."""

_WITHOUT_EFFECT = (
    "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
    # Of the training, or of how it began: where these matter, `init_lora_weights` says so.
    "lora_dropout", "loftq_config", "eva_config", "corda_config", "lora_ga_config",
    "fan_in_fan_out",  # PEFT asks the module's type, whatever is said here
    "megatron_core", "qalora_group_size",  # of `megatron_config` and `use_qalora`, which have to be off
    "runtime_config",  # which PEFT ignores in a file
)  # fmt: skip
"""Settings that may have any value. Whatever is neither here nor in `_READ` has to be off (null, false or empty)."""

_PLAIN_STARTS = ("gaussian", "eva", "orthogonal", "mica")
"""Starts (`init_lora_weights`) that leave the base weights as they are, besides true and false. From `pissa`, `olora`,
`corda`, `loftq` and `lora_ga` on, training continues on other base weights than the checkpoint's."""


@dataclass(frozen=True)
class AdapterConfig:
    """The settings of a LoRA adapter that can be merged."""

    adapter: str  # its name, for messages
    settings: Mapping[str, Any]

    def rank(self, module: str) -> int:
        return int(self._by_pattern("rank_pattern", "r", module))

    def scale(self, module: str) -> float:
        """alpha / r, or alpha / sqrt(r) where the adapter is rank-stabilised."""
        rank = self.rank(module)
        alpha = float(self._by_pattern("alpha_pattern", "lora_alpha", module))
        return alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)

    def targets(self, module: str) -> bool:
        """Whether PEFT gives that module matrices of its own; what a file has for others, it leaves out."""
        excluded, targets = self.settings.get("exclude_modules"), self.settings.get("target_modules")
        if excluded and _matches(excluded, module):
            return False
        if any(re.match(rf"(^|.*\.){name}($|\..*)", module) for name in self.settings.get("modules_to_save") or ()):
            return False
        if targets is None or targets == "all-linear":  # PEFT writes what it made of these
            return True
        return _matches(targets, module) and (isinstance(targets, str) or module in targets or self._layer_is(module))

    def _layer_is(self, module: str) -> bool:
        """Whether the layer that a module belongs to is one of those that `layers_to_transform` names."""
        layers, patterns = self.settings.get("layers_to_transform"), self.settings.get("layers_pattern") or ()
        if layers is None or layers == []:
            return True
        found = re.match(r".*?\.[^.]*\.(\d+)\.", module) if not patterns else None
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            found = found or re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module)
        return found is not None and int(found[1]) in ([layers] if isinstance(layers, int) else layers)

    def _by_pattern(self, patterns: str, otherwise: str, module: str) -> Any:
        """The value of the first pattern that matches, as PEFT matches them."""
        for pattern, value in (self.settings.get(patterns) or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        return self.settings.get(otherwise, 8)  # PEFT's default of both


def read_config(adapter: str, path: Path) -> AdapterConfig:
    """Read and check an `adapter_config.json`.

    Args:
        adapter: its name, for messages.

    Raises:
        UsageError: it is none of PEFT's, or of an adapter that does more than is merged here; the message names it.
    """
    try:
        settings = json.loads(path.read_bytes())
        found = _refused(settings)
        config = AdapterConfig(adapter, settings)
        if not found:
            _check_values(config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, re.error) as error:
        raise UsageError(f"adapter {adapter}: {CONFIG} is not one of PEFT's ({error!r})") from None
    if found:
        raise UsageError(
            f"adapter {adapter}: it has {', '.join(found)}; accepted: plain LoRA; "
            "where PEFT can merge it (merge_and_unload()), give the merged checkpoint as the model"
        )
    return config


def _refused(settings: Mapping[str, Any]) -> list[str]:
    """Settings that make an adapter another kind than plain LoRA."""
    if settings["peft_type"] != "LORA":
        return [f"peft_type {settings['peft_type']!r}"]
    start = settings.get("init_lora_weights", True)
    known = start is None or isinstance(start, bool) or (isinstance(start, str) and start.lower() in _PLAIN_STARTS)
    found = [] if known else [f"init_lora_weights {start!r} (it starts from changed base weights, or is unknown)"]
    return found + [name for name, value in settings.items() if name not in (*_READ, *_WITHOUT_EFFECT) and value]


def _check_values(config: AdapterConfig) -> None:
    """Raises ValueError, TypeError or re.error where a value is none that PEFT writes."""
    settings = config.settings
    ranks = [settings.get("r", 8), *(settings.get("rank_pattern") or {}).values()]
    if not all(type(rank) is int and rank > 0 for rank in ranks):
        raise ValueError(f"ranks {ranks}")
    alphas = [settings.get("lora_alpha", 8), *(settings.get("alpha_pattern") or {}).values()]
    if not all(type(alpha) in (int, float) and math.isfinite(alpha) for alpha in alphas):
        raise ValueError(f"alphas {alphas}")
    if settings.get("bias", "none") not in ("none", "all", "lora_only"):
        raise ValueError(f"bias {settings['bias']!r}")
    config.targets("any.0.module")  # what is no pattern raises here
    config.scale("any.0.module")


def _matches(names: str | list[str], module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return module in names or any(module.endswith(f".{name}") for name in names)
