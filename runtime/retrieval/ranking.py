"""The best of each direction: texts of a picture and pictures of a text, by similarity, then by the matching head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from catp.runtime.errors import UsageError
from catp.runtime.pipeline import Pipeline
from catp.runtime.retrieval.gallery import TEXTS, Advance, Gallery


@dataclass(frozen=True)
class Ranking:
    """The best n of one direction, best first."""

    best: np.ndarray  # int64 [R, n]
    scores: np.ndarray  # float32 [R, n], descending: similarity, plus the logit of yes where the head read both


@dataclass(frozen=True)
class Found:
    """Both directions of a search among I pictures and T texts."""

    similarity: np.ndarray  # float32 [I, T]
    texts: Ranking  # of each picture
    pictures: Ranking  # of each text


def search(
    gallery: Gallery,
    ids: Sequence[Sequence[int]],
    similarity: np.ndarray,
    best: int,
    rerank: int = 0,
    rows: int = TEXTS,
    advance: Advance = lambda _: None,
) -> Found:
    """The best of each direction.

    With `rerank`, the best so many by similarity are read by the matching head, picture by picture, each pair once for
    both directions; a pair's score is then its similarity plus the head's logit of yes, as in BLIP's official
    evaluation (https://github.com/salesforce/BLIP, train_retrieval.py, evaluation).

    Args:
        gallery: of I pictures, with their image tokens where `rerank` is not 0.
        ids: token ids of T texts.
        similarity: float32 [I, T].
        best: how many are wanted of each; fewer where there are no more.
        rerank: 0: none are looked at again; it counts for at least `best`.
        rows: texts that the head reads at a time.

    Raises:
        UsageError: the model has no such head.
        GraphError: the head fails.
    """
    check_rerank(gallery.pipeline, rerank)
    pictures, texts = similarity.shape
    wide = max(best, rerank) if rerank else best
    of_pictures, of_texts = top(similarity, min(wide, texts)), top(similarity.T, min(wide, pictures))
    if not rerank:
        return Found(similarity, _ranked(of_pictures, similarity), _ranked(of_texts, similarity.T))
    wanted: list[dict[int, int]] = [{} for _ in range(pictures)]  # of each picture, its place in the rows of texts
    for text, row in enumerate(of_texts.tolist()):
        for place, picture in enumerate(row):
            wanted[picture][text] = place
    by_picture, by_text = np.empty(of_pictures.shape, np.float32), np.empty(of_texts.shape, np.float32)
    for picture, places in enumerate(wanted):
        found = _read_both(gallery, picture, sorted({*of_pictures[picture].tolist(), *places}), ids, rows)
        scores = {text: logit + float(similarity[picture, text]) for text, logit in found.items()}
        by_picture[picture] = [scores[text] for text in of_pictures[picture].tolist()]
        for text, place in places.items():
            by_text[text, place] = scores[text]
        advance(1)
    return Found(similarity, _sorted(of_pictures, by_picture), _sorted(of_texts, by_text))


def check_rerank(pipeline: Pipeline, rerank: int) -> None:
    """Raises UsageError where a bundle has no head to look again with, or a number is none of pictures."""
    if rerank < 0:
        raise UsageError(f"rerank {rerank}: give 0, or how many of the best are looked at again")
    if rerank and not pipeline.matching.has_head:
        family = pipeline.manifest.model.family
        raise UsageError(f"rerank {rerank}: {family} has no head that reads text and image at once; leave it out")


def _read_both(
    gallery: Gallery, picture: int, texts: Sequence[int], ids: Sequence[Sequence[int]], rows: int
) -> dict[int, float]:
    """The logit of yes, of each of these texts with a picture; texts of one length are read together."""
    order = sorted(texts, key=lambda text: len(ids[text]))
    seen = gallery.look_again(picture)
    found: dict[int, float] = {}
    for at in range(0, len(order), rows):
        chosen = order[at : at + rows]
        logits = gallery.pipeline.matching.logits(seen.for_texts(len(chosen)), [ids[text] for text in chosen])
        found.update(zip(chosen, logits[:, 1].tolist()))
    return found


def top(scores: np.ndarray, count: int) -> np.ndarray:
    """int64 [R, count]: the places of the highest of each row [R, N], descending; of equal ones the first."""
    return np.stack([np.argsort(-row, kind="stable")[:count] for row in scores])


def _ranked(best: np.ndarray, scores: np.ndarray) -> Ranking:
    return Ranking(best, np.take_along_axis(scores, best, 1).astype(np.float32))


def _sorted(best: np.ndarray, scores: np.ndarray) -> Ranking:
    order = np.argsort(-scores, axis=1, kind="stable")
    return Ranking(np.take_along_axis(best, order, 1), np.take_along_axis(scores, order, 1))
