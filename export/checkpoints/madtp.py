"""MADTP's own files beside a checkpoint's.

`madtp.safetensors` has the guidance, `madtp.json` the temperature. MADTP (arXiv 2403.02991) prunes image tokens inside
the encoder. It adds one learned matrix to BLIP, `space_dict`, and to CLIP also a map for each block:
`vision_model.N.q_map.weight` [S, W] and `.bias` [S] for its N-th layer, `text_model.N.q_map.*` likewise.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from catp.export.checkpoints.reading import reading
from catp.export.checkpoints.weight_files import find_file
from catp.export.encoder_pruning.guidance import Guidance, TokenMap
from catp.runtime.errors import UsageError

WEIGHTS = "madtp.safetensors"
SETTINGS = "madtp.json"
SPACE_DICT = "space_dict"
"""The tensor's name, in the official checkpoints too."""

_QUERY_MAP = "q_map"
_AGAIN = "convert or save the checkpoint again"


@dataclass(frozen=True)
class Madtp:
    """MADTP's part of a checkpoint; None where that has none."""

    space_dict: torch.Tensor | None
    """float32 [T, W]: guidance of a token x [W] is its largest product with one of T rows."""
    temperature: float | None
    """Divisor of the guidance in the softmax that decides how many tokens stay; 0 prunes nothing."""
    query_maps: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """CLIP's, float32, by the names they have in the file: tokens are mapped before they are multiplied."""

    def guidance(self, where: str, encoder: str, layers: int, width: int) -> Guidance | None:
        """The guidance of an encoder of that many layers; None: nothing guides it.

        Args:
            where: the files are, for the message.
            encoder: "vision_model" or "text_model".
            width: of its tokens.

        Raises:
            UsageError: the maps are not those of such an encoder.
        """
        if self.space_dict is None:
            return None
        if not self.query_maps:
            return Guidance(self.space_dict) if self.space_dict.shape[1] == width else None
        entry = self.space_dict.shape[1]
        maps = []
        for layer in range(layers):
            weight, bias = (self.query_maps.get(query_map(encoder, layer, part)) for part in ("weight", "bias"))
            if weight is None or bias is None or (weight.shape, bias.shape) != ((entry, width), (entry,)):
                found = "missing" if weight is None or bias is None else f"{list(weight.shape)} and {list(bias.shape)}"
                raise UsageError(
                    f"{where}: {query_map(encoder, layer, 'weight')} and bias are {found}; accepted: "
                    f"[{entry}, {width}] and [{entry}], for each of {layers} layers; {_AGAIN}"
                )
            maps.append(TokenMap(weight, bias))
        return Guidance(self.space_dict, tuple(maps))


def query_map(encoder: str, layer: int, part: str) -> str:
    """The name of a layer's map in the file.

    Args:
        encoder: "vision_model" or "text_model".
        part: "weight" or "bias".
    """
    return f"{encoder}.{layer}.{_QUERY_MAP}.{part}"


def read_madtp(model: str, width: int, revision: str | None = None) -> Madtp:
    """The files of a checkpoint.

    Args:
        model: a local folder or a Hub id.
        width: the vision encoder's hidden size.

    Raises:
        UsageError: they are not MADTP's, or not of a model of this width.
        CatpError: a file is broken, or the Hub can't be reached.
    """
    weights, settings = (find_file(model, name, revision) for name in (WEIGHTS, SETTINGS))
    tensors = {} if weights is None else _read_tensors(f"model {model}: {weights.name}", weights)
    space_dict = tensors.pop(SPACE_DICT, None)
    if space_dict is not None:
        # Maps bring tokens of any width to the dictionary's.
        entry = space_dict.shape[-1] if tensors else width
        check_space_dict(f"model {model}: {WEIGHTS}", space_dict.shape, entry)
    temperature = None if settings is None else _read_temperature(f"model {model}: {settings.name}", settings)
    return Madtp(space_dict, temperature, tensors)


def check_space_dict(where: str, shape: tuple[int, ...], width: int) -> None:
    """Raises UsageError where a `space_dict` of that shape can't guide an encoder of `width`.

    Args:
        where: it was found, for the message.
    """
    if len(shape) != 2 or 0 in shape:
        raise UsageError(f"{where}: {SPACE_DICT} is {list(shape)}; accepted: [T, W], W the tokens' width; {_AGAIN}")
    if shape[1] != width:
        raise UsageError(
            f"{where}: {SPACE_DICT} is {shape[1]} wide and the vision encoder {width}; MADTP's guidance multiplies "
            "image tokens with it, so such a model can't have it; give a checkpoint whose widths are equal"
        )


def check_temperature(where: str, value: Any) -> float:
    """The number, where it is one that MADTP can have.

    Raises:
        UsageError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
        raise UsageError(f"{where}: temperature is {value!r:.100}; accepted: a number of at least 0 (0 prunes nothing)")
    return float(value)


def _read_tensors(where: str, path: Path) -> dict[str, torch.Tensor]:
    """All of the file's, float32."""
    with reading(f"{where} is broken", _AGAIN):
        tensors = load_file(path)
    if SPACE_DICT not in tensors:
        raise UsageError(f"{where} has no tensor {SPACE_DICT}; {_AGAIN}")
    if other := sorted(name for name in tensors if name != SPACE_DICT and _QUERY_MAP not in name.split(".")):
        more = f" and {len(other) - 3} more" if len(other) > 3 else ""
        raise UsageError(
            f"{where} has {', '.join(other[:3])}{more}, which nothing reads; accepted: {SPACE_DICT}, and CLIP's "
            f"{_QUERY_MAP}; {_AGAIN}"
        )
    for name, value in tensors.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise UsageError(f"{where}: {name} has values that are no finite numbers; {_AGAIN}")
    return {name: value.float() for name, value in tensors.items()}


def _read_temperature(where: str, path: Path) -> float:
    with reading(f"{where} is broken", _AGAIN):
        settings = json.loads(path.read_bytes())
    if not isinstance(settings, dict) or "temperature" not in settings:
        raise UsageError(f'{where} has no temperature; accepted: {{"temperature": 0.75}}; {_AGAIN}')
    return check_temperature(where, settings["temperature"])
