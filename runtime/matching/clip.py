"""CLIP's scores: one vector for each text, one for each picture."""

from __future__ import annotations

from typing import ClassVar

from catp.runtime.bundle.folder import Bundle
from catp.runtime.image_sides.query_tokens import Encoded, Pruned
from catp.runtime.matching.base import Matching, Pictures, check_vectors
from catp.runtime.providers.base import Provider, to_host


class Clip(Matching):
    """text_embedding and image_embedding."""

    has_head: ClassVar[bool] = False
    reader: ClassVar[str] = "the text encoder"

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        super().__init__(bundle, provider)
        self._image = provider.engine(bundle, "image_embedding")

    def see(self, encoded: Encoded, pruned: Pruned) -> Pictures:
        """The vector of each picture, made of its CLS token."""
        embeds = encoded["image_embeds"]
        vectors = to_host(self._image.bind({"image_embeds": embeds}).run()["image_vector"])
        return Pictures(embeds, pruned.kept_indices, check_vectors("image_embedding", vectors)[:, None])
