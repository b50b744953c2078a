"""Pictures and texts of a search, embedded in batches with bounded memory, and all their similarities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from catp.runtime.errors import ImageError, UsageError
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.inputs.image_files import ImageSource
from catp.runtime.matching import Pictures
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import to_host

BATCH = 8
"""Pictures that are encoded at a time."""

TEXTS = 32
"""Texts that are read at a time."""

KEPT_BYTES = 1 << 30
"""Image tokens that are kept for a matching head; pictures beyond it are encoded again when it reads them."""

MATRIX_BYTES = 4 << 30
"""Similarities of all pictures and texts."""

Advance = Callable[[int], None]
"""Told how many pictures are done."""


@dataclass
class Gallery:
    """Pictures, of which each may be looked at again.

    Args:
        sources: those that could be read.
        vectors: float32 [I, v, Dt], each of length 1.
        counts: int64 [L] of each picture, kept by each layer of an encoder in the dynamic form; empty in any other.
    """

    pipeline: Pipeline
    sources: list[ImageSource]
    vectors: np.ndarray
    ratio: float | None
    encoder: EncoderWish
    kept: dict[int, Pictures] = field(default_factory=dict)
    counts: list[np.ndarray] = field(default_factory=list)

    def look_again(self, picture: int) -> Pictures:
        """One picture with its image tokens.

        Raises:
            ImageError: it has to be encoded again, and can't be read any more.
        """
        found = self.kept.get(picture)
        if found is None:
            pixels = self.pipeline.preprocess([self.sources[picture]])
            found = self.pipeline.see_pixels(pixels, self.ratio, self.encoder)
        return found


def embed_gallery(
    pipeline: Pipeline,
    sources: Sequence[ImageSource],
    ratio: float | None = None,
    encoder: EncoderWish = DEFAULT,
    keeps_tokens: bool = False,
    batch: int = BATCH,
    skip: Callable[[int, ImageError], None] | None = None,
    advance: Advance = lambda _: None,
    kept_bytes: int = KEPT_BYTES,
) -> Gallery:
    """Every picture encoded once, a batch at a time.

    Args:
        keeps_tokens: image tokens are kept, up to `kept_bytes`, for a head that reads them later.
        skip: told which picture can't be read, and left out; None: that is an error.

    Raises:
        UsageError: the bundle is of no retrieval model, or no picture can be read.
        ImageError: a picture can't be read, and none is skipped.
        GraphError: a graph fails.
    """
    _, _ = pipeline.matching, pipeline.num_kept(ratio)  # refuses before any work
    pruning = pipeline.manifest.encoder_pruning
    if pruning is not None and pruning.form == "dynamic":
        batch = 1  # pictures of a batch decide how many tokens each other keeps
    gallery = Gallery(pipeline, [], np.zeros((0, 1, 1), np.float32), ratio, encoder)
    vectors: list[np.ndarray] = []
    left = kept_bytes
    for at in range(0, len(sources), batch):
        given = sources[at : at + batch]
        read = [_read(pipeline, at + number, source, skip) for number, source in enumerate(given)]
        here = [(source, pixels) for source, pixels in zip(given, read) if pixels is not None]
        if here:
            seen = pipeline.see_pixels(np.concatenate([pixels for _, pixels in here]), ratio, encoder)
            vectors.append(to_host(seen.vectors))
            if seen.counts is not None:
                gallery.counts.append(to_host(seen.counts))
            if keeps_tokens:
                left = _keep(gallery, seen, left)
            gallery.sources += [source for source, _ in here]
        advance(len(given))
    if not vectors:
        raise UsageError("images: none could be read; give at least one picture")
    gallery.vectors = np.concatenate(vectors)
    return gallery


def _read(
    pipeline: Pipeline, number: int, source: ImageSource, skip: Callable[[int, ImageError], None] | None
) -> np.ndarray | None:
    try:
        return pipeline.preprocess([source])
    except ImageError as error:
        if skip is None:
            raise
        skip(number, error)
        return None


def _keep(gallery: Gallery, seen: Pictures, left: int) -> int:
    """Keep the pictures of a batch as long as they fit; how many bytes are left then."""
    embeds, indices, vectors = (to_host(value) for value in (seen.embeds, seen.kept_indices, seen.vectors))
    size = embeds[0].nbytes + indices[0].nbytes + vectors[0].nbytes
    for row in range(len(embeds)):
        if size > left:
            return 0  # and none after it, so that it's known which they are
        one = (np.array(values[row : row + 1]) for values in (embeds, indices, vectors))
        gallery.kept[len(gallery.sources) + row] = Pictures(*one)
        left -= size
    return left


def read_texts(pipeline: Pipeline, texts: Sequence[str], most: int | None = None) -> list[list[int]]:
    """Token ids of texts; longer ones than `most` lose what stands before their last token, as Hugging Face truncates.

    Raises:
        UsageError: there is none, or one is too long for the model.
    """
    if not texts:
        raise UsageError("0 texts: give at least one")
    found = [pipeline.tokenize(text) for text in texts]
    if most is not None:
        found = [ids if len(ids) <= most else [*ids[: most - 1], ids[-1]] for ids in found]
    limit = pipeline.manifest.text.max_positions
    for text, ids in zip(texts, found):
        if limit is not None and len(ids) > limit:
            raise UsageError(f"text {text[:40]!r}: {len(ids)} tokens, and this model reads {limit}; give a shorter one")
    return found


def embed_texts(pipeline: Pipeline, ids: Sequence[Sequence[int]], rows: int = TEXTS) -> np.ndarray:
    """float32 [T, Dt] of length 1, of token ids; texts of one length are read together."""
    order = sorted(range(len(ids)), key=lambda text: len(ids[text]))
    found: np.ndarray | None = None
    for at in range(0, len(order), rows):
        chosen = order[at : at + rows]
        vectors = pipeline.matching.embed([ids[text] for text in chosen])
        if found is None:
            found = np.empty((len(ids), vectors.shape[1]), np.float32)
        found[chosen] = vectors
    assert found is not None, "checked when texts were read"
    return found


def similarities(pictures: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """float32 [I, T]: the largest cosine of a text and one of a picture's vectors.

    Args:
        pictures: float32 [I, v, Dt].
        texts: float32 [T, Dt].

    Raises:
        UsageError: they don't fit the memory that is meant for them.
    """
    size = 4 * len(pictures) * len(texts)
    if size > MATRIX_BYTES:
        raise UsageError(
            f"{len(pictures):,} images and {len(texts):,} texts: their similarities take {size / 1e9:.1f} GB, at most "
            f"{MATRIX_BYTES / 1e9:.1f} are computed at a time; give fewer"
        )
    found = np.empty((len(pictures), len(texts)), np.float32)
    for row, vectors in zip(found, pictures):
        np.max(vectors @ texts.T, axis=0, out=row)
    return found
