"""The best text of each picture and the best picture of each text: whether they belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from catp.calibration.data.dataset import VqaExample
from catp.calibration.retrieval.evaluation import RERANK, read_as_evaluated
from catp.runtime.pipeline import Pipeline
from catp.runtime.retrieval.gallery import Gallery, embed_gallery, embed_texts, similarities
from catp.runtime.retrieval.ranking import search


@dataclass(frozen=True)
class Best:
    """Findings for Q questions whose picture could be read."""

    questions: tuple[VqaExample, ...]
    texts: np.ndarray  # int64 [Q]: the text that fits the question's picture best, its place among the candidates
    right: np.ndarray  # [Q]: 1 where picture and caption find each other, 0.5 where one of them finds the other


def find_best(
    pipeline: Pipeline,
    questions: Sequence[VqaExample],
    texts: Sequence[str],
    ratio: float,
    batch: int,
    embedded: Callable[[Gallery], None],
    advance: Callable[[int], None],
) -> Best:
    """Search as catp-eval does, where a matching head reads the best again.

    Args:
        questions: pictures with a text each; several may be about one picture.
        texts: candidates for all pictures, of which none is known to be right; none: the questions' own.
        ratio: of query tokens removed; of a model that votes for none, 0.
        embedded: called with the pictures when each was seen once, and none again.
        advance: told how many questions are done, picture by picture.

    Raises:
        UsageError: no picture can be read.
        GraphError: a graph fails, or its scores are not finite.
    """
    first: dict[str, VqaExample] = {}
    for question in questions:
        first.setdefault(question.image_key, question)
    ids, _ = read_as_evaluated(pipeline, texts or [question.question for question in questions])
    vectors = embed_texts(pipeline, ids)
    rerank = RERANK if pipeline.matching.has_head else 0
    unread: set[int] = set()
    done = 0

    def looked(pictures: int) -> None:
        nonlocal done
        before, done = done, done + pictures
        advance(len(questions) * done // len(first) - len(questions) * before // len(first))

    gallery = embed_gallery(
        pipeline,
        [question.image for question in first.values()],
        ratio if pipeline.manifest.vote is not None else None,
        keeps_tokens=rerank > 0,
        batch=batch,
        skip=lambda place, _: unread.add(place),
        advance=looked if not rerank else lambda _: None,
    )
    embedded(gallery)
    found = search(gallery, ids, similarities(gallery.vectors, vectors), 1, rerank, advance=looked)
    row_of = {key: row for row, key in enumerate(key for place, key in enumerate(first) if place not in unread)}
    places = [place for place, question in enumerate(questions) if question.image_key in row_of]
    read = tuple(questions[place] for place in places)
    rows = np.array([row_of[question.image_key] for question in read])
    best = found.texts.best[rows, 0]
    if texts:
        return Best(read, best, np.ones(len(read)))
    picture_of = np.array([row_of.get(question.image_key, -1) for question in questions])
    right = (picture_of[best] == rows).astype(np.float64) + (found.pictures.best[places, 0] == rows)
    return Best(read, best, right / 2)
