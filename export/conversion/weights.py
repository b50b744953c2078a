"""Weights on their way from a checkpoint's file to a Hugging Face folder: checked, read, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from catp.export.checkpoints.reading import reading
from catp.export.conversion.blip_config import Shapes
from catp.export.conversion.blip_names import Task
from catp.export.conversion.listing import listed
from catp.runtime.errors import UsageError


class Values:
    """Tensors that are read when they are asked for."""

    def __init__(self, where: str, tensors: Any) -> None:
        self.where = where
        self._tensors = tensors

    def get(self, name: str) -> torch.Tensor:
        return self._tensors.get_tensor(name)

    def weight(self, name: str) -> torch.Tensor:
        """Raises UsageError where one of its values is no finite number."""
        value = self.get(name)
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise UsageError(f"{self.where}: {name} has values that are no finite numbers; fetch the file again")
        return value


def write_weights(path: Path, weights: dict[str, torch.Tensor]) -> None:
    """Raises CatpError where they can't be written."""
    with reading(f"{path.name} can't be written", "free disk space and memory"):
        save_file(weights, path, metadata={"format": "pt"})


def check_names(where: str, task: Task, wanted: Shapes, mapped: Mapping[str, str], unknown: list[str]) -> None:
    """Raises UsageError where a weight of either side has none on the other; each is listed."""
    unknown = [*unknown, *(mapped[name] for name in mapped if name not in wanted)]
    missing = [name for name in wanted if name not in mapped]
    if not missing and not unknown:
        return
    said = [f"weights of {task.architecture} are missing: {listed(missing)}"] if missing else []
    said += [f"it has others: {listed(unknown)}"] if unknown else []
    raise UsageError(f"{where}: {'; '.join(said)}; accepted: a {task.title} as the official code saves it")


def check_shapes(where: str, wanted: Shapes, found: Shapes) -> None:
    """Raises UsageError where a weight has another shape than the class wants."""
    wrong = {name: shape for name, shape in found.items() if shape != wanted[name]}
    if wrong:
        name = min(wrong)
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UsageError(
            f"{where}: sizes contradict each other: {name} is {list(wrong[name])} instead of "
            f"{list(wanted[name])}{more}; fetch the file again"
        )
