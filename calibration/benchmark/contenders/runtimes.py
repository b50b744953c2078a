"""Runtimes that a bundle is timed beside, by name: where each is found, and what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from catp.runtime.bundle.chains import LANGUAGE_STAGES, SCORE_TEXTS, LanguageKind


@dataclass(frozen=True)
class Runtime:
    """Another runtime of the same weights, which keeps every query token.

    Args:
        tasks: its class for each kind of model, and the module below this package that has it, imported when it is
            asked for; called with (name, checkpoint, threads, kind, **options).
        extra: what installs it.
        libraries: what it imports.
    """

    tasks: Mapping[LanguageKind, tuple[str, str]]
    extra: str
    libraries: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


WRITE_TEXTS: tuple[LanguageKind, ...] = tuple(kind for kind in LANGUAGE_STAGES if kind not in SCORE_TEXTS)
_BLIP_WRITING: tuple[LanguageKind, ...] = ("question-answering", "captioning")

_PYTORCH: Mapping[LanguageKind, tuple[str, str]] = {
    **dict.fromkeys(WRITE_TEXTS, ("pytorch.query_tokens", "QueryTokenAnswers")),
    **dict.fromkeys(_BLIP_WRITING, ("pytorch.writing", "BlipAnswers")),
    **dict.fromkeys(SCORE_TEXTS, ("pytorch.scoring", "TextScores")),
}
_OPENVINO: Mapping[LanguageKind, tuple[str, str]] = {
    **dict.fromkeys(WRITE_TEXTS, ("openvino.subject", "OpenVinoAnswers")),
    **dict.fromkeys(SCORE_TEXTS, ("openvino.scoring", "OpenVinoScores")),
}
_TRANSFORMERS = (_PYTORCH, "export,cpu", ("torch", "transformers"))
_CONVERTED = (_OPENVINO, "export,cpu,nncf", ("torch", "transformers", "openvino", "nncf"))

RUNTIMES: dict[str, Runtime] = {
    "transformers": Runtime(*_TRANSFORMERS),
    "transformers-bf16": Runtime(*_TRANSFORMERS, {"dtype": "bfloat16"}),
    "compile": Runtime(*_TRANSFORMERS, {"compiled": True}),
    "openvino": Runtime(*_CONVERTED),
    "openvino-int8": Runtime(*_CONVERTED, {"int8": True}),
}
"""Every other name in a report is a bundle's."""
