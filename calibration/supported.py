"""Which families' bundles a command can work on."""

from __future__ import annotations

from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError


def check_votes(bundle: Bundle, command: str) -> None:
    """Refuse a bundle that has no votes to work on, or no answers to see what they cost by.

    Raises:
        UsageError: nothing votes, or it generates no text.
    """
    check_voted(bundle, command)
    check_answers(bundle, command)


def check_voted(bundle: Bundle, command: str) -> None:
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


def check_answers(bundle: Bundle, command: str) -> None:
    """Refuse a bundle that answers no questions about an image.

    Raises:
        UsageError: it has no language model that writes.
    """
    manifest = bundle.manifest
    if not manifest.writes_text:
        raise UsageError(
            f"{command}: bundle {bundle.path} is {manifest.model.family}, which generates no text; accepted: what "
            "answers in words"
        )


def writes_captions(manifest: Manifest) -> bool:
    """Whether a bundle describes pictures, and answers no questions."""
    return manifest.model.language == "captioning"


def check_data(bundle: Bundle, data: str, command: str) -> None:
    """Refuse questions for a bundle that answers none, but continues a text about an image.

    Args:
        data: as `open_data` takes it.

    Raises:
        UsageError: it is no file of texts with what may follow them.
    """
    manifest = bundle.manifest
    if writes_captions(manifest) and not data.lower().endswith(".jsonl"):
        raise UsageError(
            f"{command}: bundle {bundle.path} is {manifest.model.family}, which answers no questions; give --data "
            'FILE.jsonl, in which "question" is how a caption begins and "answers" are what may follow'
        )
