"""Matching and contrastive scores of a retrieval bundle against the checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from catp.export.verification.expected import ExpectedMatches, ExpectedPairs
from catp.export.verification.measures import check, relative_error
from catp.runtime.bundle.manifest import ParityCheck
from catp.runtime.image_sides.query_tokens import Pruned
from catp.runtime.matching import Match, Pictures
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import to_host


def check_matches(pipeline: Pipeline, expected: ExpectedMatches, limit: float) -> Iterator[ParityCheck]:
    """Both graphs given PyTorch's kept tokens, as a ragged batch; then the chain from pictures and texts, unpruned."""
    matching, ids = pipeline.matching, expected.prompt_ids
    error = relative_error(matching.embed(ids), expected.text_embeds)
    yield check("text_embedding", "text_embeds: relative error", error, limit)
    dtype = pipeline.manifest.graphs["image_text_matching"].input("image_embeds").dtype
    pruned = Pruned(expected.kept_indices, expected.kept_embeds)
    pictures = Pictures(expected.image_embeds.astype(dtype), pruned.kept_indices, pruned.kept_embeds)
    found = matching.score(pictures, ids)
    assert found.logits is not None and expected.kept.logits is not None
    error = relative_error(found.logits, expected.kept.logits)
    yield check("image_text_matching", "match_logits of kept queries: relative error", error, limit)
    error = relative_error(found.similarity, expected.kept.similarity)
    yield check("pipeline", "similarity of kept queries: relative error", error, limit)
    images = [frame for sample in expected.samples for frame in sample.frames]
    texts = [sample.prompt for sample in expected.samples]
    together = pipeline.match(images, texts, ratio=0)
    alone = [pipeline.match([image], [text], ratio=0)[0] for image, text in zip(images, texts)]
    for how, matches in (("one by one", alone), ("as a ragged batch", together)):
        off = _off(matches, expected.every.probability)
        yield check("pipeline", f"unpruned, {how}: probability of a match, difference", off, limit)
        off = np.abs([match.similarity for match in matches] - expected.every.similarity).max()
        yield check("pipeline", f"unpruned, {how}: similarity, difference", off, limit)


def check_pairs(pipeline: Pipeline, expected: ExpectedPairs, limit: float) -> Iterator[ParityCheck]:
    """Each graph given PyTorch's image tokens, texts as a ragged batch; then the chain from pictures and texts."""
    matching, ids = pipeline.matching, expected.prompt_ids
    error = relative_error(matching.embed(ids), expected.text_embeds)
    yield check("text_embedding", "text_embeds: relative error", error, limit)
    dtype = pipeline.manifest.tensor("image_embeds").dtype
    embeds = expected.image_embeds.astype(dtype)
    seen = matching.see({"image_embeds": embeds}, Pruned(np.zeros(embeds.shape[:2], np.int64), embeds))
    error = relative_error(to_host(seen.vectors)[:, 0], expected.image_vectors)
    yield check("image_embedding", "image_vector: relative error", error, limit)
    found = matching.score(seen, ids)
    if found.logits is not None and expected.scores.logits is not None:
        error = relative_error(found.logits, expected.scores.logits)
        yield check("image_text_matching", "match_logits: relative error", error, limit)
    images = [frame for sample in expected.samples for frame in sample.frames]
    texts = [sample.prompt for sample in expected.samples]
    together = pipeline.match(images, texts)
    alone = [pipeline.match([image], [text])[0] for image, text in zip(images, texts)]
    # Rounding may keep other tokens of a picture in doubt; where all of them are, all of them count.
    doubt = np.zeros(len(texts), bool) if expected.pruned_images is None else expected.pruned_images.in_doubt
    rows = np.flatnonzero(~doubt) if not doubt.all() else np.arange(len(texts))
    for how, matches in (("one by one", alone), ("as a ragged batch", together)):
        if expected.scores.probability is not None:
            off = _off([matches[row] for row in rows], expected.scores.probability[rows])
            yield check("pipeline", f"{how}: probability of a match, difference", off, limit)
        similarity = np.array([match.similarity for match in matches])[rows]
        off = float(np.abs(similarity - expected.scores.similarity[rows]).max())
        yield check("pipeline", f"{how}: similarity, difference", off, limit)
        if expected.scaled is not None and pipeline.manifest.logit_scale is not None:
            error = relative_error(pipeline.manifest.logit_scale * similarity, expected.scaled[rows])
            yield check("pipeline", f"{how}: logits_per_image, relative error", error, limit)


def _off(matches: Sequence[Match], wanted: np.ndarray | None) -> float:
    """The largest difference of probabilities; NaN comes through."""
    assert wanted is not None
    return float(np.abs(np.array([match.probability for match in matches], np.float64) - wanted).max())
