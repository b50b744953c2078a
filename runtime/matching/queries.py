"""Scores of texts against images, by the graphs of a retrieval bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import GraphError, UsageError
from catp.runtime.inputs.padding import padded
from catp.runtime.providers.base import Provider, Value, to_host


@dataclass(frozen=True)
class Match:
    """How well a text fits an image."""

    probability: float  # that they belong together, by the matching head, which reads both at once
    similarity: float  # contrastive: the largest cosine between the text and a kept query token
    kept_indices: list[int]  # ascending, of 0 .. num_query_tokens - 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """Scores of a batch, as the heads output them."""

    logits: np.ndarray  # float32 [B, 2]: no, yes
    similarity: np.ndarray  # float32 [B]

    @property
    def probability(self) -> np.ndarray:
        """float64 [B]: of yes."""
        no, yes = self.logits.astype(np.float64).T
        with np.errstate(over="ignore"):  # then it is 0
            return 1 / (1 + np.exp(no - yes))


class Matching:
    """text_embedding and image_text_matching on their engines."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        self._text = bundle.manifest.text
        self._embedding = provider.engine(bundle, "text_embedding")
        self._head = provider.engine(bundle, "image_text_matching")

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [B, Dt] of length 1, from token ids.

        Raises:
            UsageError: a text has more tokens than the Q-Former has positions.
            GraphError: the graph fails, or its vectors are not finite.
        """
        found = to_host(self._embedding.bind(self._inputs(texts)).run()["text_embeds"])
        if not np.isfinite(found).all():
            raise GraphError("text_embedding", "its vectors are not finite (NaN or infinite)")
        return found

    def score(
        self, image_embeds: Value, kept_indices: Value, kept_embeds: Value, texts: Sequence[Sequence[int]]
    ) -> Scores:
        """Text b against image b.

        Args:
            image_embeds: [B, I, Dv], of the vision encoder.
            kept_indices: int64 [B, k].
            kept_embeds: float32 [B, k, Dt], of the Q-Former graph.
            texts: B lists of token ids.

        Raises:
            UsageError: a text has more tokens than the Q-Former has positions.
            GraphError: a graph fails, or its scores are not finite.
        """
        inputs = {"image_embeds": image_embeds, "kept_indices": kept_indices, **self._inputs(texts)}
        logits = to_host(self._head.bind(inputs).run()["match_logits"])
        similarity = np.einsum("bkd,bd->bk", to_host(kept_embeds), self.embed(texts)).max(1)
        if logits.shape != (len(texts), 2) or not (np.isfinite(logits).all() and np.isfinite(similarity).all()):
            raise GraphError("image_text_matching", "its scores are not finite (NaN or infinite), or not two a text")
        return Scores(logits, similarity)

    def _inputs(self, texts: Sequence[Sequence[int]]) -> dict[str, Value]:
        ids, lengths = padded(texts, self._text.pad_token_id)
        limit = self._text.max_positions
        if limit is not None and ids.shape[1] > limit:
            raise UsageError(f"text: {ids.shape[1]} tokens, the Q-Former takes {limit}; give a shorter one")
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        return {"text_ids": ids, "text_mask": mask.astype(np.int64)}
