"""BLIP-2's scores: texts against the query tokens that a picture keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.image_sides.query_tokens import Encoded, Pruned
from catp.runtime.matching.base import Matching, Pictures, check_logits, check_vectors
from catp.runtime.providers.base import Provider, to_host


class Queries(Matching):
    """text_embedding and image_text_matching, which also takes the kept query tokens."""

    has_head: ClassVar[bool] = True
    reader: ClassVar[str] = "the Q-Former"

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        super().__init__(bundle, provider)
        self._head = provider.engine(bundle, "image_text_matching")

    def see(self, encoded: Encoded, pruned: Pruned) -> Pictures:
        """A vector for each kept query token, as the Q-Former graph gives them."""
        vectors = check_vectors("qformer_voting", to_host(pruned.kept_embeds))
        return Pictures(encoded["image_embeds"], pruned.kept_indices, vectors)

    def logits(self, pictures: Pictures, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [B, 2]: kept query tokens and words read the picture and each other."""
        inputs = {"image_embeds": pictures.embeds, "kept_indices": pictures.kept_indices, **self._inputs(texts)}
        return check_logits(to_host(self._head.bind(inputs).run()["match_logits"]), len(texts))
