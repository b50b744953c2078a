"""Intake: a question that was read becomes a job, with everything done for it that needs no graph."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Literal

from catp.runtime.questions import Question, Wishes
from catp.runtime.server.failures import Failure
from catp.runtime.server.model.engine import ModelEngine
from catp.runtime.server.model.image_cache import key_of
from catp.runtime.server.model.jobs import Event, Job
from catp.runtime.server.reading.pictures import open_picture
from catp.runtime.server.reading.questions import Asked


def make_job(
    engine: ModelEngine,
    asked: Asked,
    wishes: Wishes,
    salt: bytes,
    request_id: str,
    tell: Callable[[Event], None],
    began: float,
    explains: bool = False,
) -> Job:
    """A job of one question; takes as long as its picture takes to decode, unless it is known.

    Args:
        salt: see `key_of`.
        began: when the request was read, on time.monotonic's clock.
        explains: its votes are told with its answer.

    Raises:
        Failure: it does not fit a row.
        UsageError: a setting is out of range, or the prompt can't be read.
        ImageError: the picture can't be read.
    """
    pipeline = engine.pipeline
    manifest = pipeline.manifest
    frames = len(asked.pictures)
    ids, limit = pipeline.check(Question(b"", asked.prompt, wishes), frames)
    kept, mass = wishes.pruning(manifest, pipeline.image_side)
    most = frames * (kept if mass is None else manifest.tokens) if manifest.vote else 0
    room = engine.length + 1 - most - len(ids)
    if room < 1 or (mass is None and wishes.max_new_tokens is not None and limit > room):
        raise Failure(
            400,
            f"{most} image tokens, {len(ids)} of the prompt and {limit} new ones: at most {engine.length + 1} together "
            "are served here; give a shorter prompt, a smaller max_tokens or a larger ratio",
            "context_length_exceeded",
            "max_tokens" if room >= 1 else asked.field,
        )
    if wishes.max_new_tokens is None:
        wishes = dataclasses.replace(wishes, max_new_tokens=min(limit, room))
    key = key_of(asked.pictures, engine.identity, asked.prompt if manifest.reads_instruction else None, salt)
    seen, pixel_values = engine.cache.get(key), None
    started = time.monotonic()
    if seen is None:
        pixel_values = pipeline.preprocess([open_picture(content) for content in asked.pictures])
    return Job(
        request_id=request_id,
        prompt=asked.prompt,
        wishes=wishes,
        tokens=[ids],
        key=key,
        seen=seen,
        pixel_values=pixel_values,
        preprocess_seconds=time.monotonic() - started,
        tell=tell,
        deadline=began + engine.settings.request_seconds,
        queue_deadline=began + engine.settings.queue_seconds,
        explains=explains,
    )


def make_match_job(
    engine: ModelEngine,
    picture: bytes,
    texts: Sequence[str],
    ratio: float | None,
    request_id: str,
    tell: Callable[[Event], None],
    began: float,
) -> Job:
    """A job that scores texts against one picture; arguments as of `make_job`.

    Raises:
        UsageError: the ratio is out of range, or a text can't be read.
        ImageError: the picture can't be read.
    """
    tokens = [engine.pipeline.tokenize(text) for text in texts]
    return _job_without_row(engine, tokens, picture, ratio, request_id, tell, began, "match")


def make_embed_job(
    engine: ModelEngine,
    tokens: Sequence[Sequence[int]],
    picture: bytes | None,
    ratio: float | None,
    request_id: str,
    tell: Callable[[Event], None],
    began: float,
) -> Job:
    """A job that embeds texts, given as token ids, or a picture; other arguments as of `make_job`.

    Raises:
        UsageError: the ratio is out of range.
        ImageError: the picture can't be read.
    """
    return _job_without_row(engine, tokens, picture, ratio, request_id, tell, began, "embed")


def _job_without_row(
    engine: ModelEngine,
    tokens: Sequence[Sequence[int]],
    picture: bytes | None,
    ratio: float | None,
    request_id: str,
    tell: Callable[[Event], None],
    began: float,
    work: Literal["match", "embed"],
) -> Job:
    pipeline = engine.pipeline
    pipeline.num_kept(ratio)
    started = time.monotonic()
    pixel_values = None if picture is None else pipeline.preprocess([open_picture(picture)])
    return Job(
        request_id=request_id,
        prompt="",
        wishes=Wishes(pipeline.manifest.generation, ratio),
        tokens=tokens,
        key=b"",
        seen=None,
        pixel_values=pixel_values,
        preprocess_seconds=time.monotonic() - started,
        tell=tell,
        deadline=began + engine.settings.request_seconds,
        queue_deadline=began + engine.settings.queue_seconds,
        work=work,
    )
