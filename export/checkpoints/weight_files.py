"""A checkpoint's safetensors: which files they are, and in what type they hold weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from catp.runtime.files import is_dir

_HALF = {"F16": torch.float16, "BF16": torch.bfloat16}


def stored_dtype(model: str, revision: str | None = None) -> torch.dtype:
    """The type that holds every weight exactly: half precision where all of them share one, float32 elsewhere.

    The files are asked, not config.json, which says what somebody once wanted to load.

    Args:
        model: a local folder or a Hub id, whose weights are fetched.
    """
    found = set()
    for path in _weight_files(model, revision):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (it's no dict)
    return _HALF.get(found.pop(), torch.float32) if len(found) == 1 else torch.float32


def _weight_files(model: str, revision: str | None) -> list[Path]:
    """None where there are none, which loading the model explains."""
    if is_dir(Path(model)):
        return sorted(Path(model).glob("model*.safetensors"))

    def fetched(name: str) -> str | None:
        return cached_file(model, name, revision=revision, _raise_exceptions_for_missing_entries=False)

    index = fetched(SAFE_WEIGHTS_INDEX_NAME)
    names = json.loads(Path(index).read_text())["weight_map"].values() if index else [SAFE_WEIGHTS_NAME]
    return [Path(path) for path in map(fetched, sorted(set(names))) if path is not None]
