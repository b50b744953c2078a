"""Unpickling of a .pth file, in a process of its own.

`torch.load(weights_only=True)` runs no code that a pickle names. It has had holes, and a pickle can also exhaust the
memory or end the process that reads it: so that process does nothing else.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from catp.export.conversion import unpickling_process
from catp.runtime.errors import CatpError, UsageError


@dataclass(frozen=True)
class Unpickled:
    """The content of a .pth file."""

    tensors: Path
    """Safetensors, by the names they have under `model`."""
    aliases: Mapping[str, str]
    """Further names of tensors that have several: to the one in `tensors`."""
    temperature: Any


def unpickle(file: Path, folder: Path) -> Unpickled:
    """The content of a file that was written by `torch.save({"model": ..., "temperature": ...})`.

    Args:
        folder: an empty one, for the tensors: as many bytes as the file has.

    Raises:
        UsageError: there is no such file, or it is no such checkpoint.
        CatpError: it is broken.
    """
    if not file.is_file():
        what = "it is a folder" if file.is_dir() else "there is no such file"
        raise UsageError(f"file {file}: {what}; give a .pth file that the official code of MADTP or BLIP saved")
    ended = _run(file.resolve(), folder.resolve())
    result = _result(folder)
    if ended.returncode or result is None:
        raise CatpError(
            f"file {file}: the process that unpickled it {_how(ended)}; free memory if it ran out, or fetch "
            "the file again"
        )
    if "error" in result:
        raise _error(file, result["kind"], result["error"])
    return Unpickled(folder / unpickling_process.TENSORS, result["aliases"], result["temperature"])


def _run(file: Path, folder: Path) -> subprocess.CompletedProcess[bytes]:
    # One thread, few arenas: the limit on its address space is for what it reads.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    command = [sys.executable, "-P", unpickling_process.__file__, str(file), str(folder)]
    return subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)


def _result(folder: Path) -> dict[str, Any] | None:
    try:
        return dict(json.loads((folder / unpickling_process.RESULT).read_text()))
    except (OSError, ValueError):
        return None


def _how(ended: subprocess.CompletedProcess[bytes]) -> str:
    """How a process ended that wrote no result."""
    if ended.returncode < 0:
        return f"was ended by {signal.Signals(-ended.returncode).name}"
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    return f"ended with exit code {ended.returncode}" + (f" ({said[-1][:200]})" if said else "")


def _error(file: Path, kind: str, cause: str) -> CatpError:
    if kind == "code":
        return UsageError(
            f"file {file}: its pickle calls code ({cause}), which is never run; give a file of tensors "
            "and numbers alone"
        )
    if kind == "refused":
        return UsageError(
            f"file {file}: {cause}; accepted: a .pth file of MADTP's official code, which has model, epoch and "
            "temperature, or of BLIP's own, which has a model"
        )
    if kind == "memory":
        return CatpError(f"file {file}: it takes far more memory than its size to read; it is none that training saved")
    return CatpError(f"file {file}: it can't be read ({cause}); fetch it again, or save it with torch.save")
