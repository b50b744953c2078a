"""A bundle that scores texts as what is timed, and its input."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from catp.calibration.benchmark.contenders.bundle_subject import timed
from catp.calibration.benchmark.contenders.subject import (
    OURS,
    Case,
    Timed,
    TimedInput,
    draw_words,
    make_picture,
)
from catp.calibration.benchmark.schedules import Schedule
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import DEFAULT, EncoderWish
from catp.runtime.image_sides.query_tokens import Encoded
from catp.runtime.inputs.text import TextCodec
from catp.runtime.matching.base import probability_of_yes
from catp.runtime.matching.zero_shot import ROWS, probabilities
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers.base import Provider, to_host

CLASSES = 10
"""Texts of a contrastive model where no number is asked for: classes, the same for all pictures."""


def count_texts(manifest: Manifest, asked: int | None) -> int | None:
    """Texts of one request; None of a bundle that writes text.

    Raises:
        UsageError: a number is asked for where there is one text, or none.
    """
    kind = manifest.model.language
    if asked is not None and (manifest.writes_text or kind == "two-images"):
        does = "writes text" if manifest.writes_text else "judges one statement about two pictures"
        raise UsageError(f"--texts {asked}: the bundle is {manifest.model.family}, which {does}; leave it out")
    if manifest.writes_text:
        return None
    return asked or (CLASSES if kind == "contrastive" else 1)


def make_scored_input(bundle: Bundle, vocabulary: int, batch: int, tokens: int, texts: int, seed: int) -> TimedInput:
    """Pictures, and texts of ordinary token ids between the marks that the tokenizer puts around a text.

    Args:
        batch: requests at a time.
        tokens: of each text, marks included.
        texts: of each request.

    Raises:
        UsageError: the marks alone are more tokens, or the text encoder takes fewer.
    """
    manifest = bundle.manifest
    text = manifest.text
    try:
        marks = TextCodec(bundle.path / "tokenizer.json", text, text.image_token_id).encode("")
    except UsageError:  # there are none
        marks = []
    if tokens <= len(marks):
        raise UsageError(f"{tokens} prompt tokens: {len(marks)} frame a text of this model; give more")
    if text.max_positions is not None and tokens > text.max_positions:
        raise UsageError(f"{tokens} prompt tokens: this model's text encoder takes {text.max_positions}; give fewer")
    rng = np.random.default_rng(seed)
    special = {text.pad_token_id, *text.eos_token_ids, *marks}
    drawn = [draw_words(rng, tokens - len(marks), vocabulary, special) for _ in range(texts)]
    framed = tuple([*marks[:1], *words, *marks[1:]] for words in drawn)
    images = [make_picture(rng) for _ in range(manifest.pictures * batch)]
    return TimedInput(images, framed[0], 0, framed)


class ScoringSubject:
    """The runtime's own path from pictures and token ids to scores: `match`, `judge`, or a CLIP's `classify`."""

    def __init__(
        self, bundle: Bundle, provider: Provider, name: str = OURS, schedules: Sequence[Schedule] = ()
    ) -> None:
        """
        Args:
            schedules: those of its encoder that cases ask for.
        """
        self.name = name
        self.pipeline = Pipeline(bundle, provider)
        self._wishes: dict[float | None, EncoderWish] = {None: DEFAULT, **{s.flops: s.wish for s in schedules}}

    def run(self, timed_input: TimedInput, case: Case) -> Timed:
        """Score the first `case.batch` requests, from pictures in memory to scores in host memory."""
        pipeline, wish = self.pipeline, self._wishes[case.encoder_flops]
        images = timed_input.images[: pipeline.manifest.pictures * case.batch]
        started = time.perf_counter()
        pixel_values = pipeline.preprocess(images)
        stages = {"preprocess": 1e3 * (time.perf_counter() - started)}
        encoded, stages["vision"] = timed(pipeline.provider, lambda: pipeline.encode(pixel_values, encoder=wish))
        texts = [list(text) for text in timed_input.texts]
        if pipeline.manifest.model.language == "two-images":
            verdicts, stages["text"] = timed(
                pipeline.provider,
                lambda: pipeline.judge_encoded(encoded, texts * case.batch, range(case.batch)),
            )
            scores = np.array([[verdict.probability_of_true] for verdict in verdicts])
        else:
            scores = self._match(encoded, texts, case, stages)
        total = 1e3 * (time.perf_counter() - started)
        return Timed({**stages, "host": total - sum(stages.values()), "total": total}, scores=scores.tolist())

    def _match(self, encoded: Encoded, texts: list[list[int]], case: Case, stages: dict[str, float]) -> np.ndarray:
        """Scores of each picture's texts, float [B, texts]: of classes their probabilities; else the cosines, and
        before them the probabilities of the head, if there is one. The time of each stage is noted in `stages`.
        """
        pipeline = self.pipeline
        manifest, matching, provider = pipeline.manifest, pipeline.matching, pipeline.provider
        kept, vote, scale = pipeline.num_kept(case.ratio), manifest.vote, manifest.logit_scale
        pruned, milliseconds = timed(provider, lambda: pipeline.prune(encoded, kept))
        if vote is not None:
            stages["qformer"] = milliseconds
            pruned.check(case.batch, kept, vote.num_query_tokens)
        pictures, milliseconds = timed(provider, lambda: matching.see(encoded, pruned))
        if "image_embedding" in manifest.graphs:
            stages["image"] = milliseconds
        rows = texts if scale is not None else texts * case.batch  # classes are everybody's
        size = ROWS if scale is not None else len(rows)
        vectors, stages["text"] = timed(
            provider,
            lambda: np.concatenate([matching.embed(rows[at : at + size]) for at in range(0, len(rows), size)]),
        )
        seen = to_host(pictures.vectors)
        if scale is not None:
            return probabilities(seen[:, 0], vectors, scale)
        similarity = np.einsum("bvd,bnd->bvn", seen, vectors.reshape(case.batch, len(texts), -1)).max(1)
        if not matching.has_head:
            return similarity
        several = len(texts) > 1
        logits, stages["match"] = timed(
            provider, lambda: matching.logits(pictures.for_texts(len(texts)) if several else pictures, rows)
        )
        return np.concatenate([probability_of_yes(logits).reshape(case.batch, -1), similarity], 1)
