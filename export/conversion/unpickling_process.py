"""Process that reads a .pth file: a script of its own, which imports nothing of this project.

    python -P unpickling_process.py FILE FOLDER

writes `tensors.safetensors` to FOLDER and then `result.json`, which has an `error` where it failed. Whatever the file
makes of this process, the one that started it goes on.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

TENSORS = "tensors.safetensors"
RESULT = "result.json"

_SLACK = 4 << 30
"""Bytes of address space that reading any file may take, beside four times its size."""


def run(file: Path, folder: Path) -> None:
    """Write the result; tensors before it, where there are any."""
    try:
        result = _convert(file, folder)
    except BaseException as error:
        result = _failure(error)
    (folder / RESULT).write_text(json.dumps(result))


def _convert(file: Path, folder: Path) -> dict[str, Any]:
    """The result, once the tensors are written.

    Raises:
        Refusal: the file is no checkpoint.
    """
    content = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(content, Mapping) or not isinstance(content.get("model"), Mapping):
        raise Refusal(f"it has no model: {_described(content)}")
    # A plain BLIP or CLIP has neither.
    if "temperature" not in content and "space_dict" in content["model"]:
        raise Refusal(f"it has no temperature: {_described(content)}")
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    size = 0
    for name, value in content["model"].items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise Refusal(f"{str(name)[:100]!r} in its model is no tensor")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise Refusal(f"{name[:100]!r} is sparse, quantised or without values")
        storage = value.untyped_storage()
        size += 0 if (known := (storage.data_ptr(), value.storage_offset(), *_form(value))) in first else value.nbytes
        if value.nbytes > storage.nbytes() or size > 2 * file.stat().st_size:
            raise Refusal(f"{name[:100]!r} is larger than what the file holds of it")
        if value.numel() and known in first:  # the same weight by another name
            aliases[name] = first[known]
            continue
        first[known] = name
        whole = value.is_contiguous() and value.nbytes == storage.nbytes()
        tensors[name] = value.detach() if whole else value.detach().clone(memory_format=torch.contiguous_format)
    save_file(tensors, folder / TENSORS)
    temperature = content.get("temperature")
    if isinstance(temperature, torch.Tensor) and temperature.numel() == 1:
        temperature = temperature.item()
    if not isinstance(temperature, int | float):
        temperature = f"{type(temperature).__name__}"
    return {"aliases": aliases, "temperature": temperature}


class Refusal(Exception):
    """The file can be read, and is no checkpoint."""


def _form(value: Any) -> tuple[Any, ...]:
    return value.dtype, tuple(value.shape), value.stride()


def _described(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"its content is a {type(content).__name__}"
    names = [str(name)[:40] for name in list(content)[:5]]
    return f"its keys are {', '.join(names)}{', ...' if len(content) > 5 else ''}" if names else "it is empty"


def _limit_memory(budget: int) -> None:
    """Limit what this process holds from here on, where the system has such a limit."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + budget, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        return


def _failure(error: BaseException) -> dict[str, str]:
    """Kind and cause of an error, one line."""
    text = str(error)
    if isinstance(error, Refusal):
        return {"kind": "refused", "error": text}
    if code := re.search(r"\bGLOBAL ([\w.]+)", text):
        return {"kind": "code", "error": code[1][:100]}
    if isinstance(error, MemoryError) or "allocate memory" in text or "Cannot allocate" in text:
        return {"kind": "memory", "error": ""}
    if "Weights only load failed" in text or "Unsupported" in text:
        # The rest of that message tells how to run what is in the file.
        cause = re.search(r"WeightsUnpickler error: (.*)", text)
        return {"kind": "pickle", "error": cause[1][:200] if cause else "its pickle has more than tensors"}
    line = next(iter(text.strip().splitlines()), "")
    return {"kind": "broken", "error": f"{type(error).__name__}: {line}"[:200]}


if __name__ == "__main__":
    source, target = Path(sys.argv[1]), Path(sys.argv[2])
    _limit_memory(4 * source.stat().st_size + _SLACK)
    run(source, target)
