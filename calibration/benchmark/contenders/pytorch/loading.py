"""Loading of a checkpoint for PyTorch alone: as its own class loads it, with the attention that this chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig
from transformers.utils import logging

from catp.calibration.benchmark.contenders.hugging_face import check_compiler
from catp.export.families import family_of
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import CatpError, UsageError


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
