"""BLIP's scores: the two vectors that CLIP has too, and a head that reads text and picture at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.matching.base import Pictures, check_logits
from catp.runtime.matching.clip import Clip
from catp.runtime.providers.base import Provider, to_host


class Blip(Clip):
    """text_embedding, image_embedding and image_text_matching."""

    has_head: ClassVar[bool] = True

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        super().__init__(bundle, provider)
        self._head = provider.engine(bundle, "image_text_matching")

    def logits(self, pictures: Pictures, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [B, 2]: words read the picture's tokens and each other."""
        inputs = {"image_embeds": pictures.embeds, **self._inputs(texts)}
        return check_logits(to_host(self._head.bind(inputs).run()["match_logits"]), len(texts))
