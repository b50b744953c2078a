"""The interface of a retrieval model: how texts and pictures become vectors, and what they score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from catp.runtime.bundle.folder import Bundle
from catp.runtime.errors import GraphError, UsageError
from catp.runtime.image_sides.query_tokens import Encoded, Pruned
from catp.runtime.inputs.padding import padded
from catp.runtime.providers.base import Provider, Value, to_host


@dataclass(frozen=True)
class Match:
    """How well a text fits an image."""

    probability: float | None  # that they belong together, by the head that reads both at once; None: there is none
    similarity: float  # contrastive: the largest cosine between the text and one of the image's vectors
    kept_indices: list[int]  # ascending, of query tokens, or of image tokens where nothing votes

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """Scores of a batch, as the heads output them."""

    logits: np.ndarray | None  # float32 [B, 2]: no, yes; None: the model has no such head
    similarity: np.ndarray  # float32 [B]

    @property
    def probability(self) -> np.ndarray | None:
        """float64 [B]: of yes."""
        return None if self.logits is None else probability_of_yes(self.logits)


@dataclass(frozen=True)
class Pictures:
    """B pictures, encoded: everything that texts are compared with."""

    embeds: Value  # [B, I, Dv], of the vision encoder: what a matching head reads
    kept_indices: Value  # int64 [B, k]
    vectors: Value  # float32 [B, v, Dt] of length 1: one for each kept query token, or one for the picture
    counts: Value | None = None  # int64 [L], kept by each layer of an encoder in the dynamic form

    def for_texts(self, count: int) -> Pictures:
        """One picture, as often as there are texts."""
        values = (np.repeat(to_host(value), count, 0) for value in (self.embeds, self.kept_indices, self.vectors))
        return Pictures(*values)


class Matching(ABC):
    """The graphs of a retrieval model after its image side, loaded: `text_embedding` in every bundle."""

    has_head: ClassVar[bool]
    """Whether a head reads a text and a picture at once."""

    reader: ClassVar[str]
    """Name of the part that reads a text, for messages."""

    def __init__(self, bundle: Bundle, provider: Provider) -> None:
        self._text = bundle.manifest.text
        self._embedding = provider.engine(bundle, "text_embedding")

    def embed(self, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [B, Dt] of length 1, from token ids.

        Raises:
            UsageError: a text has more tokens than the model has positions.
            GraphError: the graph fails, or its vectors are not finite.
        """
        found = to_host(self._embedding.bind(self._inputs(texts)).run()["text_embeds"])
        if not np.isfinite(found).all():
            raise GraphError("text_embedding", "its vectors are not finite (NaN or infinite)")
        return found

    @abstractmethod
    def see(self, encoded: Encoded, pruned: Pruned) -> Pictures:
        """Pictures as texts are compared with them.

        Raises:
            GraphError: a graph fails, or its vectors are not finite.
        """

    def score(self, pictures: Pictures, texts: Sequence[Sequence[int]]) -> Scores:
        """Text b, as token ids, against picture b.

        Raises:
            UsageError: a text has more tokens than the model has positions.
            GraphError: a graph fails, or its scores are not finite.
        """
        logits = self.logits(pictures, texts) if self.has_head else None
        similarity = np.einsum("bvd,bd->bv", to_host(pictures.vectors), self.embed(texts)).max(1)
        if not np.isfinite(similarity).all():
            raise GraphError("text_embedding", "the similarities are not finite (NaN or infinite)")
        return Scores(logits, similarity)

    def logits(self, pictures: Pictures, texts: Sequence[Sequence[int]]) -> np.ndarray:
        """float32 [B, 2], no and yes, of text b against picture b, by the head that reads both; errors of `score`."""
        raise NotImplementedError(f"{self.reader} has no such head")

    def _inputs(self, texts: Sequence[Sequence[int]]) -> dict[str, Value]:
        """text_ids and text_mask int64 [B, T]."""
        check_lengths(texts, self._text.max_positions, self.reader)
        return text_inputs(texts, self._text.pad_token_id)


def check_lengths(texts: Sequence[Sequence[int]], limit: int | None, reader: str) -> None:
    """Raises UsageError where a text, as token ids, is longer than its reader has positions."""
    longest = max(map(len, texts))
    if limit is not None and longest > limit:
        raise UsageError(f"text: {longest} tokens, {reader} takes {limit}; give a shorter one")


def text_inputs(texts: Sequence[Sequence[int]], pad: int) -> dict[str, Value]:
    """text_ids and text_mask int64 [B, T], padded on the right."""
    ids, lengths = padded(texts, pad)
    return {"text_ids": ids, "text_mask": (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int64)}


def probability_of_yes(logits: np.ndarray) -> np.ndarray:
    """float64 [B], of logits [B, 2] of no and yes."""
    no, yes = logits.astype(np.float64).T
    with np.errstate(over="ignore"):  # then it is 0
        found: np.ndarray = 1 / (1 + np.exp(no - yes))
    return found


def check_logits(logits: np.ndarray, texts: int) -> np.ndarray:
    """The logits of a matching head; raises GraphError where they are not two finite numbers for each text."""
    if logits.shape != (texts, 2) or not np.isfinite(logits).all():
        raise GraphError("image_text_matching", "its scores are not finite (NaN or infinite), or not two a text")
    return logits


def check_vectors(graph: str, vectors: np.ndarray) -> np.ndarray:
    """The vectors that a graph gave; raises GraphError where they are not finite."""
    if not np.isfinite(vectors).all():
        raise GraphError(graph, "its vectors are not finite (NaN or infinite)")
    return vectors
