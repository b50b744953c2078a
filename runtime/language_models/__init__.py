"""Language models by the graphs that a bundle has; `catp.runtime.generation` chooses their tokens. One file each."""

from __future__ import annotations

from catp.runtime.bundle import Bundle
from catp.runtime.engines.base import Provider
from catp.runtime.language_models.base import LanguageModel
from catp.runtime.language_models.decoder_only import DecoderOnly


def open_language_model(bundle: Bundle, provider: Provider) -> LanguageModel:
    """The bundle's language model, its graphs loaded by `provider`."""
    manifest = bundle.manifest
    graph = "language_model"
    return DecoderOnly(provider.engine(bundle, graph), manifest.graphs[graph], manifest.text)
