"""Runtimes that a bundle is timed beside, by name: where each is found, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Runtime:
    """Another runtime of the same weights, which keeps every query token.

    Args:
        module: below this package; imported when it is asked for.
        subject: its class, called with (name, checkpoint, threads, **options).
        extra: what installs it.
        libraries: what it imports.
        encoder_decoder: it also runs encoder-decoder language models.
    """

    module: str
    subject: str
    extra: str
    libraries: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    encoder_decoder: bool = False


_TRANSFORMERS = ("hugging_face", "TransformersSubject", "export,cpu", ("torch", "transformers"))
_OPENVINO = (
    "openvino.subject",
    "OpenVinoSubject",
    "export,cpu,nncf",
    ("torch", "transformers", "openvino", "nncf"),
)

RUNTIMES: dict[str, Runtime] = {
    "transformers": Runtime(*_TRANSFORMERS, encoder_decoder=True),
    "transformers-bf16": Runtime(*_TRANSFORMERS, {"dtype": "bfloat16"}, encoder_decoder=True),
    "compile": Runtime(*_TRANSFORMERS, {"compiled": True}),
    "openvino": Runtime(*_OPENVINO),
    "openvino-int8": Runtime(*_OPENVINO, {"int8": True}),
}
"""Every other name in a report is a bundle's."""

ENCODER_DECODER = tuple(name for name, runtime in RUNTIMES.items() if runtime.encoder_decoder)
"""Runtimes that also run encoder-decoder language models."""
