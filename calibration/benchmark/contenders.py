"""Contenders by name. What one needs is imported when it is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from catp.calibration.benchmark.subject import Subject
from catp.runtime.errors import UsageError
from catp.runtime.manifest import Manifest

CONTENDERS = ("transformers", "transformers-bf16")


def check_contenders(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once.

    Raises:
        UsageError: one is unknown, or what it needs is not installed.
    """
    for name in names:
        if name not in CONTENDERS:
            raise UsageError(f"--against {name!r}: unknown; accepted: {', '.join(CONTENDERS)}")
        for library in ("torch", "transformers"):
            # Imported later: it takes memory that would be taken for ours.
            if not _is_installed(library):
                raise UsageError(
                    f"--against {name}: it needs {library}, which is not installed; pip install '.[export,cpu]'"
                )
    return tuple(dict.fromkeys(names))


def _is_installed(library: str) -> bool:
    try:
        return importlib.util.find_spec(library) is not None
    except ValueError:  # it was blocked
        return False


def find_checkpoint(manifest: Manifest, given: str | None) -> str:
    """Where the weights of contenders are: as given, or those of the demo.

    Raises:
        UsageError: none was given, and the bundle is not the demo's.
    """
    if given is not None:
        return given
    if manifest.model.id != "catp-demo":
        raise UsageError(
            f"--against: contenders need the weights that this bundle was exported from ({manifest.model.id}); name "
            "their folder or Hub id with --checkpoint"
        )
    from catp.export.demo import CHECKPOINT

    return str(CHECKPOINT)


def open_contender(name: str, checkpoint: str, threads: int) -> Subject:
    """Load a contender, one of CONTENDERS.

    Raises:
        UsageError: its checkpoint can't be loaded.
    """
    import torch

    from catp.calibration.benchmark.hugging_face import TransformersSubject

    dtype = {"transformers": torch.float32, "transformers-bf16": torch.bfloat16}[name]
    return TransformersSubject(name, checkpoint, dtype, threads)
