"""Matching and contrastive scores of a retrieval bundle against the checkpoint's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from catp.export.verification.expected import ExpectedMatches
from catp.export.verification.measures import check, relative_error
from catp.runtime.bundle.manifest import ParityCheck
from catp.runtime.image_sides.query_tokens import Pruned
from catp.runtime.pipeline import Pipeline


def check_matches(pipeline: Pipeline, expected: ExpectedMatches, limit: float) -> Iterator[ParityCheck]:
    """Both graphs given PyTorch's kept tokens, as a ragged batch; then the chain from pictures and texts, unpruned."""
    matching, ids = pipeline.matching, expected.prompt_ids
    error = relative_error(matching.embed(ids), expected.text_embeds)
    yield check("text_embedding", "text_embeds: relative error", error, limit)
    dtype = pipeline.manifest.graphs["image_text_matching"].input("image_embeds").dtype
    pruned = Pruned(expected.kept_indices, expected.kept_embeds)
    found = matching.score(expected.image_embeds.astype(dtype), pruned.kept_indices, pruned.kept_embeds, ids)
    error = relative_error(found.logits, expected.kept.logits)
    yield check("image_text_matching", "match_logits of kept queries: relative error", error, limit)
    error = relative_error(found.similarity, expected.kept.similarity)
    yield check("pipeline", "similarity of kept queries: relative error", error, limit)
    images = [frame for sample in expected.samples for frame in sample.frames]
    texts = [sample.prompt for sample in expected.samples]
    together = pipeline.match(images, texts, ratio=0)
    alone = [pipeline.match([image], [text], ratio=0)[0] for image, text in zip(images, texts)]
    for how, matches in (("one by one", alone), ("as a ragged batch", together)):
        off = np.abs([match.probability for match in matches] - expected.every.probability).max()
        yield check("pipeline", f"unpruned, {how}: probability of a match, difference", off, limit)
        off = np.abs([match.similarity for match in matches] - expected.every.similarity).max()
        yield check("pipeline", f"unpruned, {how}: similarity, difference", off, limit)
