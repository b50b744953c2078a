"""Language models by the graphs that a bundle has; `catp.runtime.generation` chooses their tokens. One file each."""

from __future__ import annotations

from collections.abc import Callable

from catp.runtime.bundle.chains import DECODE_GRAPH, LanguageKind
from catp.runtime.bundle.folder import Bundle
from catp.runtime.language_models.base import LanguageModel
from catp.runtime.language_models.decoder_only import DecoderOnly
from catp.runtime.language_models.encoder_decoder import EncoderDecoder
from catp.runtime.language_models.no_language_model import NoLanguageModel
from catp.runtime.language_models.question_answering import QuestionAnswering
from catp.runtime.providers.base import Provider


def open_language_model(bundle: Bundle, provider: Provider) -> LanguageModel:
    """The bundle's language model, its graphs loaded by `provider`."""
    return _OPEN[bundle.manifest.model.language](bundle, provider)


def _decoder_only(bundle: Bundle, provider: Provider) -> LanguageModel:
    name, manifest = "language_model", bundle.manifest
    decode = provider.engine(bundle, DECODE_GRAPH) if DECODE_GRAPH in manifest.graphs else None
    return DecoderOnly(provider.engine(bundle, name), manifest.graphs[name], manifest.text, decode)


def _none(bundle: Bundle, provider: Provider) -> LanguageModel:
    return NoLanguageModel(bundle.path)


_OPEN: dict[LanguageKind, Callable[[Bundle, Provider], LanguageModel]] = {
    "decoder-only": _decoder_only,
    "encoder-decoder": EncoderDecoder,
    "question-answering": QuestionAnswering,
    "none": _none,
}
