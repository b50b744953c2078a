"""Runtimes that a bundle is timed beside, by name: where each is found, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from catp.runtime.bundle.chains import SCORE_TEXTS, LanguageKind


@dataclass(frozen=True)
class Runtime:
    """Another runtime of the same weights, which keeps every query token.

    Args:
        module: below this package; imported when it is asked for.
        subject: its class, called with (name, checkpoint, threads, **options).
        extra: what installs it.
        libraries: what it imports.
        encoder_decoder: it also runs encoder-decoder language models.
        tasks: module and class for kinds of models that read image tokens or score texts, called with (name,
            checkpoint, threads, kind, **options).
        instructed: it also runs InstructBLIP, whose Q-Former reads the prompt.
    """

    module: str
    subject: str
    extra: str
    libraries: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    encoder_decoder: bool = False
    tasks: Mapping[LanguageKind, tuple[str, str]] = field(default_factory=dict)
    instructed: bool = False


_TRANSFORMERS = ("hugging_face", "TransformersSubject", "export,cpu", ("torch", "transformers"))
_OPENVINO = (
    "openvino.subject",
    "OpenVinoSubject",
    "export,cpu,nncf",
    ("torch", "transformers", "openvino", "nncf"),
)

_PYTORCH: Mapping[LanguageKind, tuple[str, str]] = {
    "question-answering": ("pytorch.writing", "BlipAnswers"),
    "captioning": ("pytorch.writing", "BlipAnswers"),
    **dict.fromkeys(SCORE_TEXTS, ("pytorch.scoring", "TextScores")),
}

_OPENVINO_SCORES: Mapping[LanguageKind, tuple[str, str]] = dict.fromkeys(
    SCORE_TEXTS, ("openvino.scoring", "OpenVinoScores")
)

RUNTIMES: dict[str, Runtime] = {
    "transformers": Runtime(*_TRANSFORMERS, encoder_decoder=True, instructed=True, tasks=_PYTORCH),
    "transformers-bf16": Runtime(*_TRANSFORMERS, {"dtype": "bfloat16"}, True, tasks=_PYTORCH, instructed=True),
    "compile": Runtime(*_TRANSFORMERS, {"compiled": True}, encoder_decoder=True, tasks=_PYTORCH),
    "openvino": Runtime(*_OPENVINO, tasks=_OPENVINO_SCORES),
    "openvino-int8": Runtime(*_OPENVINO, {"int8": True}, tasks=_OPENVINO_SCORES),
}
"""Every other name in a report is a bundle's."""

ENCODER_DECODER = tuple(name for name, runtime in RUNTIMES.items() if runtime.encoder_decoder)
"""Runtimes that also run encoder-decoder language models."""

BLIP_WRITING = tuple(name for name, runtime in RUNTIMES.items() if "captioning" in runtime.tasks)
"""Runtimes that also run BLIP's answers and captions; texts are scored by all of them."""
INSTRUCTED = tuple(name for name, runtime in RUNTIMES.items() if runtime.instructed)
"""Runtimes that also run InstructBLIP."""
