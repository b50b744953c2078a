"""Image sides: the graphs from pictures to the prefix of a language model. One file each, registered in IMAGE_SIDES."""

from __future__ import annotations

from collections.abc import Callable

from catp.runtime.bundle.folder import Bundle
from catp.runtime.image_sides.base import ImageSide
from catp.runtime.image_sides.image_tokens import ImageTokens
from catp.runtime.image_sides.voted_queries import VotedQueries
from catp.runtime.providers.base import Provider

IMAGE_SIDES: dict[str, Callable[[Bundle, Provider], ImageSide]] = {
    "voted-queries": VotedQueries,
    "image-tokens": ImageTokens,
}
"""By the name that a chain has for it (`catp.runtime.bundle.chains.IMAGE_STAGES`)."""


def open_image_side(bundle: Bundle, provider: Provider) -> ImageSide:
    """The bundle's image side, its graphs loaded by `provider`."""
    return IMAGE_SIDES[bundle.manifest.chain.image_side](bundle, provider)
