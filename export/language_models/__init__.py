"""How a family's language model is split into graphs: one file for each kind, whatever it is attached to."""

from __future__ import annotations

from catp.export.language_models.base import LanguagePart
from catp.export.language_models.captioning import Captioning
from catp.export.language_models.contrastive import Contrastive
from catp.export.language_models.decoder_only import DecoderOnly
from catp.export.language_models.encoder_decoder import EncoderDecoder
from catp.export.language_models.matching import Matching
from catp.export.language_models.no_language_model import NoLanguageModel
from catp.export.language_models.question_answering import QuestionAnswering
from catp.export.language_models.two_images import TwoImages

__all__ = [
    "Captioning",
    "Contrastive",
    "DecoderOnly",
    "EncoderDecoder",
    "LanguagePart",
    "Matching",
    "NoLanguageModel",
    "QuestionAnswering",
    "TwoImages",
]
