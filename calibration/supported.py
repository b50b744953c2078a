"""Which families' bundles a command can work on."""

from __future__ import annotations

from catp.runtime.bundle.chains import READ_IMAGE_TOKENS, SCORE_TEXTS
from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import UsageError


def check_votes(bundle: Bundle, command: str) -> None:
    """Refuse a bundle that has no votes to work on.

    Raises:
        UsageError: nothing votes.
    """
    manifest = bundle.manifest
    if manifest.vote is None:
        raise UsageError(
            f"{command}: bundle {bundle.path} is {manifest.model.family}, which votes for no query tokens and keeps "
            "every image token; accepted: BLIP-2, InstructBLIP"
        )


def check_pictures(bundle: Bundle, command: str) -> None:
    """Refuse a bundle of a model of videos.

    Raises:
        UsageError: it is one.
    """
    manifest = bundle.manifest
    if manifest.model.frames is not None:
        raise UsageError(
            f"{command}: bundle {bundle.path} is {manifest.model.family}, which is asked about videos; accepted: what "
            "answers questions about images"
        )


def check_data(bundle: Bundle, data: str, command: str) -> None:
    """Refuse questions for a bundle that answers none, but continues a text about an image.

    Args:
        data: as `open_data` takes it.

    Raises:
        UsageError: it is no file of texts with what may follow them.
    """
    manifest = bundle.manifest
    if manifest.model.language == "captioning" and not data.lower().endswith(".jsonl"):
        raise UsageError(
            f"{command}: bundle {bundle.path} is {manifest.model.family}, which answers no questions; give --data "
            'FILE.jsonl, in which "question" is how a caption begins and "answers" are what may follow'
        )


def check_calibrated(bundle: Bundle, command: str) -> None:
    """Refuse a bundle whose graphs can't be quantised.

    Raises:
        UsageError: it is BLIP-2 with an encoder-decoder language model, or it is asked about videos.
    """
    check_pictures(bundle, command)
    if bundle.manifest.model.language not in (*READ_IMAGE_TOKENS, *SCORE_TEXTS):
        check_decoder_only(bundle, command)


def check_decoder_only(bundle: Bundle, command: str) -> None:
    """Refuse a bundle that is driven by other graphs than vision encoder, Q-Former and one language model.

    Raises:
        UsageError: it has other graphs.
    """
    manifest = bundle.manifest
    if manifest.model.language != "decoder-only":
        raise UsageError(
            f"{command}: bundle {bundle.path} is {manifest.model.family}, driven by {', '.join(manifest.graphs)}; "
            "accepted: a decoder-only language model"
        )
