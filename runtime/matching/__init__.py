"""Scores of texts against images, by the graphs of a retrieval bundle. One file each, registered in OPENED."""

from __future__ import annotations

from collections.abc import Callable

from catp.runtime.bundle.chains import LanguageKind
from catp.runtime.bundle.folder import Bundle
from catp.runtime.matching.base import Match, Matching, Pictures, Scores
from catp.runtime.matching.blip import Blip
from catp.runtime.matching.clip import Clip
from catp.runtime.matching.queries import Queries
from catp.runtime.providers.base import Provider

OPENED: dict[LanguageKind, Callable[[Bundle, Provider], Matching]] = {
    "none": Queries,
    "matching": Blip,
    "contrastive": Clip,
}
"""By the kind of language model."""


def open_matching(bundle: Bundle, provider: Provider) -> Matching | None:
    """The bundle's scores, its graphs loaded by `provider`; None: it scores no texts."""
    opened = OPENED.get(bundle.manifest.model.language)
    return None if opened is None else opened(bundle, provider)


__all__ = ["Match", "Matching", "Pictures", "Scores", "open_matching"]
