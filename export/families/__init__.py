"""Model families: which checkpoints are supported, and what each exports. One file each, registered in FAMILIES."""

from __future__ import annotations

from typing import Any

from catp.export.families.base import Family
from catp.export.families.blip2 import Blip2
from catp.export.families.blip2_retrieval import Blip2Retrieval
from catp.export.families.blip_answering import BlipAnswering
from catp.export.families.blip_captioning import BlipCaptioning
from catp.export.families.blip_retrieval import BlipRetrieval
from catp.export.families.blip_two_images import BlipTwoImages
from catp.export.families.clip import Clip
from catp.export.families.instructblip import InstructBlip
from catp.export.families.instructblip_video import InstructBlipVideo
from catp.export.image_encoders import PlainEncoder
from catp.export.language_models import (
    Captioning,
    Contrastive,
    DecoderOnly,
    EncoderDecoder,
    Matching,
    NoLanguageModel,
    QuestionAnswering,
    TwoImages,
)
from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.errors import UsageError

FAMILIES: dict[tuple[str, str], Family] = {
    (family.model_type, family.language.kind): family
    for family in (
        *(
            family(PlainEncoder(), language())
            for family in (Blip2, InstructBlip, InstructBlipVideo)
            for language in (DecoderOnly, EncoderDecoder)
        ),
        Blip2Retrieval(PlainEncoder(), NoLanguageModel()),
        BlipAnswering(PlainEncoder("image-tokens"), QuestionAnswering()),
        BlipCaptioning(PlainEncoder("image-tokens"), Captioning()),
        BlipRetrieval(PlainEncoder("image-tokens"), Matching()),
        Clip(PlainEncoder("image-tokens"), Contrastive()),
        BlipTwoImages(PlainEncoder("image-tokens"), TwoImages()),
    )
}
"""By Hugging Face's model_type and the kind of language model."""


def family_of(config: Any, model: str) -> Family:
    """The family of a Hugging Face configuration.

    Raises:
        UsageError: no family handles it; the message names what was found and what is accepted.
    """
    accepted = ", ".join(f"{family.name}" for family in FAMILIES.values())
    text_config = getattr(config, "text_config", None)
    if text_config is None:
        raise UsageError(f"model {model}: model_type is {config.model_type!r}; accepted: {accepted}")
    kind = _language_kind(config)
    family = FAMILIES.get((config.model_type, kind))
    if family is None:
        found = f"{config.model_type!r} with the {kind} language model {text_config.model_type!r}"
        raise UsageError(f"model {model}: it is {found}; accepted: {accepted}")
    family.language.check_config(text_config, model)
    return family


def check_not_quantised(config: Any, model: str) -> None:
    """Raises UsageError where a configuration says that weights were quantised, wherever it says so."""
    parts = [config, *(getattr(config, f"{part}_config", None) for part in ("text", "vision", "qformer"))]
    for part in parts:
        for name in ("quantization_config", "compression_config"):
            if found := getattr(part, name, None):
                given = found if isinstance(found, dict) else {}
                by = given.get("quant_method") or ", ".join(key for key, value in given.items() if value is True)
                raise UsageError(
                    f"model {model}: its weights were quantised by {by or 'a library'} ({name} in config.json); "
                    "give the unquantised checkpoint, and a quantised bundle with catp-calibrate"
                )


def _language_kind(config: Any) -> LanguageKind:
    # A retrieval model's configuration names a language model as well, which it doesn't have.
    if any(name.endswith("ForImageTextRetrieval") for name in config.architectures or ()):
        return "matching" if config.model_type == "blip" else "none"
    if config.model_type == "clip":
        return "contrastive"
    if config.model_type == BlipTwoImages.model_type:
        return "two-images"
    if any(name.endswith("ForQuestionAnswering") for name in config.architectures or ()):
        return "question-answering"
    # BLIP-2's class is called likewise, whose language model is one of its own.
    if config.model_type == "blip" and "BlipForConditionalGeneration" in (config.architectures or ()):
        return "captioning"
    return "encoder-decoder" if config.text_config.is_encoder_decoder else "decoder-only"
