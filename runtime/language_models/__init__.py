"""Language models by the graphs that a bundle has; `catp.runtime.generation` chooses their tokens. One file each."""

from __future__ import annotations

from collections.abc import Callable

from catp.runtime.bundle.chains import DECODE_GRAPH, READ_IMAGE_TOKENS, LanguageKind
from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import UsageError
from catp.runtime.language_models.base import LanguageModel
from catp.runtime.language_models.captioning import Captioning
from catp.runtime.language_models.decoder_only import DecoderOnly
from catp.runtime.language_models.encoder_decoder import EncoderDecoder
from catp.runtime.language_models.no_language_model import NoLanguageModel
from catp.runtime.language_models.question_answering import QuestionAnswering
from catp.runtime.language_models.seats import Seats
from catp.runtime.language_models.separate import Separate
from catp.runtime.language_models.slots import Slots
from catp.runtime.providers.base import Provider


def open_language_model(bundle: Bundle, provider: Provider) -> LanguageModel:
    """The bundle's language model, its graphs loaded by `provider`."""
    return _OPEN[bundle.manifest.model.language](bundle, provider)


def open_seats(bundle: Bundle, model: LanguageModel, rows: int, length: int) -> Seats:
    """Room for so many prompts of so many tokens on the bundle's language model.

    Raises:
        UsageError: the bundle has none, or the machine not the memory.
    """
    graphs = bundle.manifest.graphs
    if isinstance(model, DecoderOnly):
        quantised = graphs[DECODE_GRAPH if DECODE_GRAPH in graphs else "language_model"].quantization
        if quantised is None or quantised.activations != "dynamic":
            return Slots(model, rows, length)
        return Separate(model, "language_model", model.vocabulary, rows, length)
    if isinstance(model, EncoderDecoder):
        beside = bundle.manifest.model.language in READ_IMAGE_TOKENS  # which take no place among a prompt's
        return Separate(model, model.decoder_name, model.vocabulary, rows, length, counts_image=not beside)
    raise UsageError(f"bundle {bundle.path}: it has no language model, it scores texts")


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
    "captioning": Captioning,
    "two-images": _none,
    "none": _none,
    "matching": _none,
    "contrastive": _none,
}
