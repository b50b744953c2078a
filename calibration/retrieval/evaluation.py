"""A search among all pictures and captions of a set, once for each setting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from catp.calibration.benchmark.costs.geometry import read_geometry
from catp.calibration.benchmark.costs.whole import answer_gflops
from catp.calibration.data.captions import Captions, plain_words
from catp.calibration.retrieval.recall import AT, RecallReport, Setting, recall_of
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline
from catp.runtime.retrieval.gallery import Gallery, embed_gallery, embed_texts, read_texts, similarities
from catp.runtime.retrieval.ranking import check_rerank, search

RERANK = 16
"""Candidates that a matching head reads again. BLIP's official evaluation reads 128 of Flickr30k, and 256 of COCO."""

TEXT_TOKENS = 35
"""Tokens of a text that BLIP's official evaluation reads."""


def evaluate_retrieval(
    pipeline: Pipeline,
    captions: Captions,
    settings: Sequence[Setting],
    rerank: int | None,
    seed: int,
    batch: int,
    advance: Callable[[int], None] = lambda _: None,
) -> RecallReport:
    """Recall in each setting.

    A model with a matching head, BLIP or BLIP-2, reads captions as the official evaluation does: plain words, at most
    30 of them and 35 tokens. CLIP reads them as they are, as many tokens as it can.

    Args:
        rerank: how many of the best the matching head reads; None: 16 where there is one.
        advance: told how many pictures are done; each setting looks at every picture, and again where it re-ranks.

    Raises:
        UsageError: the bundle scores no texts, or a setting is out of range.
        ImageError: a picture can't be read.
    """
    head = pipeline.matching.has_head
    rerank = (RERANK if head else 0) if rerank is None else rerank
    check_rerank(pipeline, rerank)
    ids, most = read_as_evaluated(pipeline, captions.texts)
    vectors = embed_texts(pipeline, ids)
    spec, of_texts = pipeline.manifest.encoder_pruning, pipeline.manifest.text_pruning
    geometry, length = read_geometry(pipeline.bundle), round(float(np.mean([len(tokens) for tokens in ids])))
    rows = []
    for setting in settings:
        encoder = EncoderWish(flops=setting.encoder_flops, temperature=setting.encoder_temperature)
        gallery = embed_gallery(pipeline, captions.images, setting.ratio, encoder, rerank > 0, batch, None, advance)
        similarity = similarities(gallery.vectors, vectors)
        found = search(gallery, ids, similarity, max(AT), rerank, advance=advance)
        counts = _counts(gallery, encoder)
        work = None if spec is None else float(np.mean([spec.gflops(of_picture) for of_picture in counts]))
        kept = tuple(np.rint(np.mean(counts, axis=0)).astype(int).tolist()) if counts else None
        vote = pipeline.manifest.vote
        ratio = setting.ratio if setting.ratio is not None or vote is None else vote.ratio
        in_all = answer_gflops(pipeline.manifest, geometry, kept, ratio or 0.0, length)
        rows.append(recall_of(found, captions, setting, seed, work, in_all))
    return RecallReport(
        bundle=str(pipeline.bundle.path),
        family=pipeline.manifest.model.family,
        data=captions.name,
        images=len(captions.images),
        texts=len(captions.texts),
        rerank=rerank,
        text_tokens=most,
        text_encoder=None if of_texts is None else of_texts.describe(),
        seed=seed,
        settings=tuple(rows),
    )


def _counts(gallery: Gallery, encoder: EncoderWish) -> list[tuple[int, ...]]:
    """Tokens that each layer which prunes kept: of each picture, or once where a schedule says so; none of a dense
    encoder."""
    spec = gallery.pipeline.manifest.encoder_pruning
    if spec is None:
        return []
    if spec.form == "schedule":
        return [encoder.schedule(spec)]
    return [tuple(counts.tolist()) for counts in gallery.counts]


def read_as_evaluated(pipeline: Pipeline, texts: Sequence[str]) -> tuple[list[list[int]], int | None]:
    """Token ids of texts as `evaluate_retrieval` reads captions, and how many tokens are read of a text; None: all.

    Raises:
        UsageError: there is none, or one is too long for the model.
    """
    most = pipeline.manifest.text.max_positions
    if not pipeline.matching.has_head:
        return read_texts(pipeline, texts, most), most
    most = TEXT_TOKENS if most is None else min(most, TEXT_TOKENS)
    return read_texts(pipeline, [plain_words(text) for text in texts], most), most
