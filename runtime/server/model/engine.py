"""The one thread that owns a model: it admits jobs to rows, and steps all rows together."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from catp.runtime.answers import Answer, Timings
from catp.runtime.bundle.manifest import MANIFEST_NAME, Manifest
from catp.runtime.errors import UsageError
from catp.runtime.generation.together import Running, Together
from catp.runtime.image_sides.query_tokens import Seen
from catp.runtime.inputs.text_stream import TextStream
from catp.runtime.language_models.slots import Slots
from catp.runtime.limits import STALL_SECONDS
from catp.runtime.pipeline import Pipeline
from catp.runtime.questions import Question, Wishes
from catp.runtime.server.failures import Failure, failure_of
from catp.runtime.server.log import describe, log
from catp.runtime.server.metrics import Metrics
from catp.runtime.server.model.explanation import explain
from catp.runtime.server.model.image_cache import ImageCache
from catp.runtime.server.model.jobs import Embedded, End, Finished, Job, Matched, Piece
from catp.runtime.server.settings import ServerSettings
from catp.runtime.server.shapes import Explanation

_WAIT: Final = 0.25
"""Seconds between two signs of life of a thread without work."""

_CANCELLED = Failure(499, "the client went away")


@dataclass(eq=False)
class _Answering:
    """A job that has a row."""

    job: Job
    running: Running
    stream: TextStream
    kept_indices: list[int]
    num_kept: int
    cached: bool
    image_seconds: tuple[float, float]  # encoder, Q-Former with vote
    prefill_seconds: float
    last_token: float  # on time.monotonic's clock
    decode_seconds: float = 0.0
    explanation: Explanation | None = None


def check_served(name: str, manifest: Manifest) -> None:
    """Raises UsageError for a bundle of a model that no route of the server asks: one about two images."""
    if manifest.model.language == "two-images":
        raise UsageError(
            f"model {name!r} is {manifest.model.family}, and requests bring one image; use catp-match, or "
            "Pipeline.judge"
        )


class ModelEngine:
    """A model behind a queue. All methods but those of its own thread may be called from any thread.

    Args:
        load: opens the bundle, in the model's thread.
        ended: called in the model's thread when it ends otherwise than by `stop`, with why.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], Pipeline],
        settings: ServerSettings,
        metrics: Metrics,
        ended: Callable[[BaseException], None],
    ) -> None:
        self.name = name
        self.settings = settings
        self.cache = ImageCache(settings.cache_bytes)
        self.identity = b""  # of the bundle, once it is loaded
        self.created = int(time.time())
        self._load = load
        self._metrics = metrics
        self._ended = ended
        self._wake = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._answering: dict[Running, _Answering] = {}
        self._pipeline: Pipeline | None = None
        self._together: Together | None = None
        self._beat = time.monotonic()
        self._warm = False
        self._stop = False
        self._dropped: Failure | None = None  # all jobs are to end with it
        self._request_seconds = 1.0  # of late
        self._thread = threading.Thread(target=self._run, name=f"catp {name}", daemon=True)

    # From any thread.

    def publish(self) -> None:
        """Have its gauges read, in place of those of a model of the same name."""
        gauge = self._metrics.gauge
        gauge("catp_requests_running", lambda: len(self._answering), model=self.name)
        gauge("catp_requests_waiting", lambda: len(self._waiting), model=self.name)
        gauge("catp_rows", lambda: self.settings.rows, model=self.name)
        gauge("catp_image_cache_bytes", lambda: self.cache.bytes, model=self.name)
        gauge("catp_image_cache_entries", lambda: len(self.cache), model=self.name)
        gauge("catp_model_ready", lambda: self.ready, model=self.name)

    def start(self) -> None:
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether it is warm, and its thread alive."""
        return self._warm and self._thread.is_alive() and time.monotonic() - self._beat < STALL_SECONDS

    @property
    def pipeline(self) -> Pipeline:
        """The model, for what needs no graph.

        Raises:
            Failure: it is not ready.
        """
        if self._pipeline is None or not self.ready:
            raise Failure(503, f"model {self.name!r} is not ready", "not_ready", retry_after=1)
        return self._pipeline

    @property
    def length(self) -> int:
        """Tokens of a row; 0 where the model has none."""
        return self._together.seats.length if self._together is not None else 0

    @property
    def in_flight(self) -> int:
        """Jobs that wait or have a row."""
        return len(self._waiting) + len(self._answering)

    @property
    def retry_after(self) -> int:
        """Seconds after which there may be room, by what requests took of late."""
        return int(min(60, max(1, self._request_seconds * len(self._waiting) / self.settings.rows)))

    def submit(self, job: Job) -> None:
        """Queue a job; what becomes of it is told to it.

        Raises:
            Failure: the queue is full, or the model not ready.
        """
        with self._wake:
            if not self.ready or self._stop or self._dropped is not None:
                raise Failure(503, f"model {self.name!r} is not ready", "not_ready", retry_after=1)
            if len(self._waiting) >= self.settings.waiting + self._free_rows:
                raise Failure(
                    429,
                    f"{len(self._waiting)} requests wait already; try again later",
                    "queue_full",
                    retry_after=self.retry_after,
                )
            self._waiting.append(job)
            self._wake.notify()

    def drop_all(self, failure: Failure) -> None:
        """End every job, those under way between two steps; no other is accepted."""
        with self._wake:
            self._dropped = failure
            self._wake.notify()

    def stop(self, seconds: float) -> bool:
        """End the thread; whether it did in time."""
        with self._wake:
            self._stop = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def _free_rows(self) -> int:
        return self.settings.rows - len(self._answering)

    # In the model's own thread.

    def _run(self) -> None:
        try:
            self._open()
            while not self._stop:
                self._turn()
        except BaseException as error:
            self._warm = False
            self._end_all(Failure(500, "internal error: the model's thread has ended", "engine_dead"))
            self._ended(error)
            return
        self._warm = False
        self._end_all(Failure(503, "the server is stopping", "stopping"))

    def _open(self) -> None:
        began = time.monotonic()
        pipeline = self._load()
        check_served(self.name, pipeline.manifest)
        loaded = time.monotonic()
        self.identity = hashlib.sha256((pipeline.bundle.path / MANIFEST_NAME).read_bytes()).digest()
        if pipeline.manifest.writes_text:
            self._together = Together(pipeline.open_seats(self.settings.rows, self.settings.length))
        self._pipeline = pipeline
        self._warm_up(pipeline)
        self._beat = time.monotonic()
        self._warm = True
        seconds = {"load_seconds": round(loaded - began, 3), "warm_up_seconds": round(self._beat - loaded, 3)}
        shared = self._together is not None and isinstance(self._together.seats, Slots)
        if pipeline.manifest.generation.num_beams > 1:
            log("beams_left_out", model=self.name, num_beams=pipeline.manifest.generation.num_beams)
        log("model_ready", model=self.name, rows=self.settings.rows, rows_share_steps=shared, **seconds)

    def _warm_up(self, pipeline: Pipeline) -> None:
        """Every graph once, and a step of every number of rows: the first client finds all memory allocated."""
        image = pipeline.manifest.image
        grey = np.zeros((1, 3, image.height, image.width), np.float32)
        if self._together is None:
            pipeline.match_pixels(grey, [pipeline.tokenize("a")])
            return
        together, seen = self._together, pipeline.remember(pipeline.encode(grey, ["a"]))
        settings = pipeline.manifest.generation.override(num_beams=1, min_new_tokens=2)
        wishes = Wishes(settings, None, None, None, 2)
        ids, _ = pipeline.check(Question(grey, "a", wishes))
        buckets = together.seats.buckets if isinstance(together.seats, Slots) else [1]
        for rows in buckets:
            while len(together.running) < rows:
                pruned = pipeline.keep(seen, wishes)
                if not together.join(pipeline.request(pruned, [ids], 2, None, settings)).row.running:
                    break  # the model had an end all the same
            together.step()
            for running in list(together.running):
                together.leave(running)

    def _turn(self) -> None:
        """Jobs that nobody waits for out, some in, one step, and what came of it handed out."""
        self._beat = time.monotonic()
        self._end_late()
        if self._dropped is not None:
            self._end_all(self._dropped)
        for _ in range(self.settings.admissions_per_step):
            if not self._admit_next():
                break
        if self._answering:
            self._step()
            return
        with self._wake:
            if not self._waiting and not self._stop:
                self._wake.wait(_WAIT)

    def _end_late(self) -> None:
        now = time.monotonic()
        with self._wake:
            waiting = list(self._waiting)
            late = [job for job in waiting if job.cancelled or now > min(job.deadline, job.queue_deadline)]
            for job in late:
                self._waiting.remove(job)
        for job in late:
            self._tell_end(job, self._lateness(job, waiting=True))
        for answering in list(self._answering.values()):
            if answering.job.cancelled or now > answering.job.deadline:
                self._leave(answering, self._lateness(answering.job, waiting=False))

    def _lateness(self, job: Job, waiting: bool) -> Failure:
        if job.cancelled:
            return _CANCELLED
        if waiting:
            message = f"no row was free within {self.settings.queue_seconds:g} s; try again later"
            return Failure(408, message, "queue_timeout", retry_after=self.retry_after)
        return Failure(504, f"no answer within {self.settings.request_seconds:g} s", "request_timeout")

    def _end_all(self, failure: Failure) -> None:
        with self._wake:
            waiting = list(self._waiting)
            self._waiting.clear()
        for job in waiting:
            self._tell_end(job, failure)
        for answering in list(self._answering.values()):
            self._leave(answering, failure)

    def _admit_next(self) -> bool:
        """Whether there was a job and a row for it."""
        with self._wake:
            if not self._waiting or (self._together is not None and self._together.full):
                return False
            job = self._waiting.popleft()
        try:
            self._metrics.observe("catp_time_in_queue_seconds", time.monotonic() - job.accepted, model=self.name)
            if job.work == "match":
                self._match(job)
            elif job.work == "embed":
                self._embed(job)
            else:
                self._admit(job)
        except Exception as error:  # of this request; the others go on
            self._fail(job, error)
        return True

    def _admit(self, job: Job) -> None:
        assert self._together is not None and self._pipeline is not None
        pipeline, wishes = self._pipeline, job.wishes
        seen, cached, image_seconds = self._see(job)
        job.seen = job.pixel_values = None  # nothing of the picture is kept with its answer
        began = time.monotonic()
        pruned = pipeline.keep(seen, wishes)
        explanation = None
        if job.explains and pruned.frames == 1:
            explanation = explain(pipeline.votes_of(seen), pruned.indices[0], pipeline.manifest.image)
        stream = pipeline.text_stream(wishes.settings.stop_strings)
        request = pipeline.request(pruned, job.tokens, wishes.max_new_tokens, wishes.positions, wishes.settings)
        running = self._together.join(request)
        now = time.monotonic()
        kept = pruned.kept_of(0)
        answering = _Answering(
            job, running, stream, kept, len(kept), cached, image_seconds, now - began, now, explanation=explanation
        )
        self._answering[running] = answering
        self._metrics.observe("catp_stage_seconds", now - began, model=self.name, stage="prefill")
        self._metrics.observe("catp_time_to_first_token_seconds", now - job.accepted, model=self.name)
        queries = pipeline.manifest.tokens * pruned.frames
        self._metrics.count("catp_image_tokens_total", len(kept), model=self.name, fate="kept")
        self._metrics.count("catp_image_tokens_total", queries - len(kept), model=self.name, fate="dropped")
        self._metrics.count("catp_prompt_tokens_total", len(kept) + len(job.tokens[0]), model=self.name)
        self._hand_out(answering)

    def _see(self, job: Job) -> tuple[Seen, bool, tuple[float, float]]:
        """A job's picture, whether it was known, and the seconds of encoder and Q-Former."""
        assert self._pipeline is not None
        seen = job.seen or self.cache.get(job.key)
        result = "miss" if seen is None else "hit"
        self._metrics.count("catp_image_cache_requests_total", model=self.name, result=result)
        if seen is not None:
            return seen, True, (0.0, 0.0)
        assert job.pixel_values is not None
        began = time.monotonic()
        encoded = self._pipeline.encode(job.pixel_values, [job.prompt] * len(job.pixel_values))
        self._pipeline.provider.synchronize()
        encoding = time.monotonic()
        seen = self._pipeline.remember(encoded)
        voting = time.monotonic()
        self._metrics.observe("catp_stage_seconds", job.preprocess_seconds, model=self.name, stage="preprocess")
        self._metrics.observe("catp_stage_seconds", voting - began, model=self.name, stage="image")
        self.cache.put(job.key, seen)
        return seen, False, (encoding - began, voting - encoding)

    def _match(self, job: Job) -> None:
        assert self._pipeline is not None and job.pixel_values is not None
        found = self._pipeline.match_pixels(job.pixel_values, job.tokens, job.wishes.ratio)
        self._tell_end(
            job,
            Matched(
                [m.probability for m in found if m.probability is not None],
                [m.similarity for m in found],
                found[0].kept_indices,
            ),
        )

    def _embed(self, job: Job) -> None:
        assert self._pipeline is not None
        if job.pixel_values is None:
            self._tell_end(job, Embedded(self._pipeline.matching.embed(job.tokens), []))
            return
        indices, vectors = self._pipeline.embed_pixels(job.pixel_values, job.wishes.ratio)
        self._tell_end(job, Embedded(vectors[0], indices[0]))

    def _step(self) -> None:
        assert self._together is not None
        began = time.monotonic()
        advanced = self._together.step()
        now = time.monotonic()
        self._metrics.observe("catp_stage_seconds", now - began, model=self.name, stage="step")
        self._metrics.count("catp_decode_steps_total", model=self.name)
        self._metrics.count("catp_step_rows_total", len(advanced), model=self.name)
        for running in advanced:
            answering = self._answering[running]
            if running.error is not None:
                self._fail(answering.job, running.error)
                del self._answering[running]
                continue
            self._metrics.observe("catp_time_between_tokens_seconds", now - answering.last_token, model=self.name)
            answering.decode_seconds += now - answering.last_token
            answering.last_token = now
            self._hand_out(answering)

    def _hand_out(self, answering: _Answering) -> None:
        row, job = answering.running.row, answering.job
        self._metrics.count("catp_generated_tokens_total", model=self.name)
        try:
            if row.running:
                job.tell(Piece(answering.stream.advance(row.token_ids)))
                return
            rest, finished = answering.stream.finish(row.token_ids), self._finished(answering)
        except Exception as error:  # a tokenizer that can't say this answer; the others go on
            assert self._together is not None
            self._together.leave(answering.running)
            del self._answering[answering.running]
            self._fail(job, error)
            return
        del self._answering[answering.running]
        if rest:
            job.tell(Piece(rest))
        self._tell_end(job, finished)

    def _finished(self, answering: _Answering) -> Finished:
        assert self._pipeline is not None
        row, job = answering.running.row, answering.job
        steps = len(row.token_ids) - 1
        timings = Timings(
            preprocess=1e3 * job.preprocess_seconds,
            vision=1e3 * answering.image_seconds[0],
            qformer=1e3 * answering.image_seconds[1],
            prefill=1e3 * answering.prefill_seconds,
            decode_per_token=1e3 * answering.decode_seconds / steps if steps else 0.0,
            total=1e3 * (answering.last_token - job.accepted),
        )
        answer = Answer(
            self._pipeline.detokenize(row.token_ids, job.wishes.settings.stop_strings),
            row.token_ids,
            answering.kept_indices,
            answering.num_kept,
            self._pipeline.provider.name,
            timings,
        )
        reason = "stop" if row.ended else "length"
        return Finished(answer, len(job.tokens[0]), reason, answering.cached, answering.explanation)

    def _leave(self, answering: _Answering, failure: Failure) -> None:
        assert self._together is not None
        self._together.leave(answering.running)
        del self._answering[answering.running]
        self._tell_end(answering.job, failure)

    def _fail(self, job: Job, error: Exception) -> None:
        failure = failure_of(error, job.request_id)
        if failure.status >= 500:
            log("request_failed", model=self.name, request_id=job.request_id, **describe(error))
        self._tell_end(job, failure)

    def _tell_end(self, job: Job, event: End | Failure) -> None:
        seconds = time.monotonic() - job.accepted
        if event is _CANCELLED:
            self._metrics.count("catp_cancellations_total", model=self.name)
        elif not isinstance(event, Failure):
            self._metrics.observe("catp_request_seconds", seconds, model=self.name)
            self._request_seconds += 0.2 * (seconds - self._request_seconds)
        job.tell(event)
