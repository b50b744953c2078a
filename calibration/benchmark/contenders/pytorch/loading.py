"""Loading of a checkpoint for PyTorch alone: as its own class loads it, with the attention that this chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from transformers import AutoConfig
from transformers.utils import logging

from catp.export.families import family_of
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import CatpError, UsageError


class TorchContender:
    """A checkpoint's model and its image processor.

    Args:
        name: what a report calls it.
        checkpoint: a folder or a Hub id, with safetensors.
        threads: of PyTorch, within an operator. It holds for the whole process.
        kind: of model.
        dtype: name of PyTorch's type of weights and activations.
        compiled: its parts by torch.compile, each when it is first called.

    Raises:
        UsageError: the checkpoint can't be loaded or is of another kind, or torch.compile doesn't work here.
    """

    def __init__(
        self,
        name: str,
        checkpoint: str,
        threads: int,
        kind: LanguageKind,
        dtype: str = "float32",
        compiled: bool = False,
    ) -> None:
        self.name, self._kind = name, kind
        self._dtype = getattr(torch, dtype)
        self._model, self._processor = load(name, checkpoint, threads, dtype, compiled, kind)
        self.prepare(compiled)

    def prepare(self, compiled: bool) -> None:
        """Make the loaded model ready to be timed, its parts by torch.compile where `compiled` says so."""
        raise NotImplementedError

    def preprocess(self, images: Sequence[Image.Image]) -> torch.Tensor:
        """[B,3,H,W] of the type that the model computes in."""
        return self._processor(list(images), return_tensors="pt").pixel_values.to(self._dtype)


def load(name: str, checkpoint: str, threads: int, dtype: str, compiled: bool, kind: LanguageKind) -> tuple[Any, Any]:
    """The model in evaluation mode, and its image processor.

    Args:
        name: of the contender, for messages.
        threads: of PyTorch, within an operator. It holds for the whole process.
        dtype: name of PyTorch's type of weights and activations.
        compiled: torch.compile is going to be used.
        kind: of the bundle's language model.

    Raises:
        UsageError: the checkpoint can't be loaded or is of another kind, or torch.compile doesn't work here.
    """
    torch.set_num_threads(threads)
    if compiled:
        check_compiler(name)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source: dict[str, Any] = {"trust_remote_code": False}
    advice = "give the folder or Hub id that the bundle was exported from"
    try:
        family = family_of(AutoConfig.from_pretrained(checkpoint, **source), checkpoint)
        if family.language.kind != kind:
            raise UsageError(f"--checkpoint {checkpoint}: it is {family.name}, and the bundle is not; {advice}")
        processor = family.image_processor(checkpoint, source)
        model = family.model_class().from_pretrained(
            checkpoint, **source, dtype=getattr(torch, dtype), use_safetensors=True
        )
    except CatpError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(f"--checkpoint {checkpoint}: transformers can't load it ({reason}); {advice}") from None
    return model.eval(), processor


def compile_parts(model: Any, names: Sequence[str]) -> None:
    """Let torch.compile have these parts, each when it is first called: modules, or methods."""
    for name in names:
        part = getattr(model, name)
        if isinstance(part, torch.nn.Module):
            part.forward = torch.compile(part.forward)  # not the call: its hooks are not to be compiled
        else:
            setattr(model, name, torch.compile(part))


def check_compiler(name: str) -> None:
    """Compile something small, before anything large is loaded; raises UsageError where that fails."""
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.ones(8))
    except Exception as error:  # there are as many reasons as there are compilers
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"--against {name}: torch.compile doesn't work here ({reason}); it needs a C++ compiler such as g++: "
            "install one, or leave this contender out"
        ) from None
