"""The HTTP application: routes, and what happens to a request on each."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from catp.runtime.errors import CatpError
from catp.runtime.limits import DECODERS
from catp.runtime.server import metrics as prometheus
from catp.runtime.server.bodies import ChatBody, GenerateBody, parse
from catp.runtime.server.dialects import Dialect, KServeGenerate, OpenAiChat
from catp.runtime.server.engine import ModelEngine
from catp.runtime.server.exchange import Exchange, Gate, compact, read_body
from catp.runtime.server.failures import Failure, failure_of
from catp.runtime.server.front import Front, note
from catp.runtime.server.intake import make_job
from catp.runtime.server.jobs import Event, Finished, Job, Piece
from catp.runtime.server.metrics import Metrics
from catp.runtime.server.questions import Asked, read_chat, read_pictures, read_wishes
from catp.runtime.server.settings import ServerSettings

Result = TypeVar("Result")


class State:
    """The state of the whole server, on the event loop.

    Args:
        engines: by the name of their model; the first one is meant where none is named.
    """

    def __init__(self, engines: Mapping[str, ModelEngine], settings: ServerSettings, metrics: Metrics) -> None:
        self.engines = engines
        self.settings = settings
        self.metrics = metrics
        self.draining = False
        rooms = len(engines) * (settings.rows + settings.waiting)
        self.gate = Gate(rooms, settings.waiting_bytes)
        self.decoders = ThreadPoolExecutor(DECODERS, "catp decode")
        metrics.gauge("catp_draining", lambda: self.draining)

    def engine(self, name: str, param: str | None = "model") -> ModelEngine:
        """Raises Failure where no model has that name."""
        if name not in self.engines:
            known = ", ".join(self.engines)
            raise Failure(404, f"model {name[:100]!r} is not served here; served: {known}", "model_not_found", param)
        return self.engines[name]

    @property
    def ready(self) -> bool:
        return not self.draining and all(engine.ready for engine in self.engines.values())

    @property
    def retry_after(self) -> int:
        return max(engine.retry_after for engine in self.engines.values())

    async def decode(self, work: Callable[[], Result]) -> Result:
        """Work that takes long, off the event loop; so many at a time."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, work)


def make_app(state: State) -> Front:
    """The whole application, with what stands before every route."""
    v2 = "/v2/models/{name}"
    routes = [
        Route("/health", partial(_ready, state)),
        Route("/health/ready", partial(_ready, state)),
        Route("/health/live", _live),
        Route("/metrics", partial(_metrics, state)),
        Route("/version", _version),
        Route("/v1/models", partial(_models, state)),
        Route("/v1/models/{name:path}", partial(_model, state)),
        Route("/v1/chat/completions", _Asking(state, "chat", _read_chat), methods=["POST"]),
        Route(f"{v2}/generate", _Asking(state, "generate", _read_generate), methods=["POST"]),
        Route(
            f"{v2}/generate_stream", _Asking(state, "generate_stream", _read_generate, stream=True), methods=["POST"]
        ),
    ]
    router = Router(routes, redirect_slashes=False, default=_unknown)
    return Front(router, state.settings, lambda: state.draining, partial(_count, state.metrics))


def _count(metrics: Metrics, facts: Mapping[str, Any]) -> None:
    """A request that is over, in the metrics."""
    if "route" in facts:
        outcome = _OUTCOMES.get(facts["status"], "ok" if facts["status"] < 400 else "refused")
        metrics.count("catp_requests_total", model=facts.get("model", ""), route=facts["route"], outcome=outcome)
        if outcome == "rejected":
            metrics.count("catp_rejections_total", reason=facts.get("code") or "other")


_OUTCOMES = {429: "rejected", 503: "rejected", 408: "timeout", 504: "timeout", 499: "cancelled", 500: "failed"}
"""By status; what else is 400 or more was refused for what it asked."""


async def _unknown(scope: Scope, receive: Receive, send: Send) -> None:
    raise Failure(404, "there is no such path here", "not_found")


async def _ready(state: State, request: Request) -> Response:
    models = {name: "ready" if engine.ready else "not ready" for name, engine in state.engines.items()}
    said = "draining" if state.draining else "ready" if state.ready else "not ready"
    return JSONResponse({"status": said, "models": models}, 200 if state.ready else 503)


async def _live(request: Request) -> Response:
    return JSONResponse({"status": "live"})


async def _metrics(state: State, request: Request) -> Response:
    return PlainTextResponse(state.metrics.text(), media_type=prometheus.CONTENT_TYPE)


def package_version() -> str:
    """The version that is installed; "0" in a clone that nothing was installed from."""
    try:
        return version("catp-exporter")
    except PackageNotFoundError:
        return "0"


async def _version(request: Request) -> Response:
    return JSONResponse({"version": package_version()})


async def _models(state: State, request: Request) -> Response:
    return JSONResponse({"object": "list", "data": [_described(engine) for engine in state.engines.values()]})


async def _model(state: State, request: Request) -> Response:
    return JSONResponse(_described(state.engine(request.path_params["name"])))


def _described(engine: ModelEngine) -> dict[str, Any]:
    found = {"id": engine.name, "object": "model", "created": engine.created, "owned_by": "catp"}
    if engine.ready:
        manifest = engine.pipeline.manifest
        pruning = manifest.pruning
        found["catp"] = {
            "source": manifest.model.id,
            "family": manifest.model.family,
            "precision": manifest.precision_label,
            "method": pruning.method,
            "ratio": pruning.ratio,
            "keep_mass": pruning.keep_mass,
            "num_query_tokens": pruning.num_query_tokens,
            "max_length": engine.length,
        }
    return found


@dataclasses.dataclass(frozen=True)
class Reading:
    """A request, read.

    Args:
        make: its job; takes long.
    """

    dialect: Dialect
    stream: bool
    engine: ModelEngine
    make: Callable[[Exchange], Job]


Reader = Callable[[State, Request, bytes, bool], Reading]
"""Of a body and whether it asks for a stream by its path; raises Failure or CatpError. It takes long."""


class _Asking:
    """A route on which questions are asked; an ASGI application, so that a request's whole life is in one block."""

    def __init__(self, state: State, route: str, read: Reader, stream: bool = False) -> None:
        self._state = state
        self._route = route
        self._read = read
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, state = Request(scope, receive), self._state
        note(scope, route=self._route)
        with state.gate.enter(state.retry_after):
            exchange = Exchange(request)
            reading, job = await self._take(request, exchange)
            async with exchange.follow(job):
                reading.engine.submit(job)
                first = await exchange.next()
                if reading.stream:
                    await self._send_stream(request, exchange, send, first, reading.dialect)
                else:
                    await self._send_whole(request, exchange, send, first, reading.dialect)

    async def _take(self, request: Request, exchange: Exchange) -> tuple[Reading, Job]:
        """A request's job; its body is forgotten when this returns.

        Raises:
            Failure: there is none to be made of it.
        """
        state = self._state
        with state.gate.hold() as chunks:
            body = await read_body(request, state.gate, chunks, state.settings)
            try:
                reading = await state.decode(partial(self._read, state, request, body, self._stream))
                note(request.scope, model=reading.engine.name)
                return reading, await state.decode(partial(reading.make, exchange))
            except CatpError as error:
                raise failure_of(error, request.scope["catp"]["request_id"]) from error

    async def _send_whole(
        self, request: Request, exchange: Exchange, send: Send, first: Event, dialect: Dialect
    ) -> None:
        *_, last = await exchange.rest(first)
        assert isinstance(last, Finished)
        _note(request.scope, last)
        await exchange.send(send, _start("application/json"))
        await exchange.send(send, {"type": "http.response.body", "body": compact(dialect.whole(last))})

    async def _send_stream(
        self, request: Request, exchange: Exchange, send: Send, event: Event, dialect: Dialect
    ) -> None:
        """Events from the first one on; however it goes, the last one says that it is the last."""

        async def say(*parts: bytes) -> None:
            await exchange.send(send, {"type": "http.response.body", "body": b"".join(parts), "more_body": True})

        await exchange.send(send, _start("text/event-stream; charset=utf-8"))
        try:
            opening = [_event(part) for part in dialect.opening()]
            while isinstance(event, Piece):
                if event.text:
                    await say(*opening, _event(dialect.piece(event.text)))
                    opening = []
                event = await exchange.next()
            assert isinstance(event, Finished)
            closing = [_event(part) for part in dialect.closing(event)]
            await say(*opening, *closing, dialect.end or b"")
            _note(request.scope, event)
        except Failure as failure:
            note(request.scope, failed=failure)
            if failure.status == 499:
                return
            await say(_event(dialect.failed(failure)))
        await exchange.send(send, {"type": "http.response.body", "body": b""})


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + compact(content) + b"\n\n"


def _start(kind: str) -> dict[str, Any]:
    headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def _note(scope: Scope, finished: Finished) -> None:
    """Numbers of an answer, for the log."""
    answer = finished.answer
    note(
        scope,
        prompt_tokens=answer.num_kept + finished.prompt_tokens,
        generated_tokens=len(answer.token_ids),
        finish_reason=finished.reason,
        image_cached=finished.cached,
    )


def _read_chat(state: State, request: Request, body: bytes, stream: bool) -> Reading:
    asked = parse(ChatBody, body)
    engine = state.engine(asked.model)
    pipeline = engine.pipeline
    manifest = pipeline.manifest
    _check_generates(engine)
    question = read_chat(asked, manifest, state.settings.prompt_template)
    tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    wishes = read_wishes(asked, asked.stop, tokens, manifest.generation)
    include_usage = asked.stream_options is not None and asked.stream_options.include_usage
    return Reading(
        OpenAiChat(request.scope["catp"]["request_id"], engine.name, include_usage),
        bool(asked.stream),
        engine,
        _maker(state, request, engine, question, wishes, asked.cache_salt),
    )


def _read_generate(state: State, request: Request, body: bytes, stream: bool) -> Reading:
    asked = parse(GenerateBody, body)
    engine = state.engine(request.path_params["name"], None)
    manifest = engine.pipeline.manifest
    _check_generates(engine)
    given = asked.parameters
    tokens = given.max_new_tokens if given.max_tokens is None else given.max_tokens
    wishes = read_wishes(given, given.stop, tokens, manifest.generation)
    question = Asked(asked.text_input, read_pictures(asked.image, manifest, "image"), "image")
    return Reading(
        KServeGenerate(engine.name, asked.id),
        stream,
        engine,
        _maker(state, request, engine, question, wishes, given.cache_salt),
    )


def _check_generates(engine: ModelEngine) -> None:
    if engine.pipeline.manifest.model.language == "none":
        message = f"model {engine.name!r} scores texts and writes none; use /v2/models/{engine.name}/infer"
        raise Failure(400, message, "unsupported_model", "model")


def _maker(
    state: State, request: Request, engine: ModelEngine, question: Asked, wishes: Any, salt: str | None
) -> Callable[[Exchange], Job]:
    scope, began = request.scope, time.monotonic()
    return lambda exchange: make_job(
        engine, question, wishes, salt_of(state, request, salt), scope["catp"]["request_id"], exchange.tell, began
    )


def salt_of(state: State, request: Request, given: str | None) -> bytes:
    """What tells those apart who must not see each other's pictures in the time that an answer takes: where there are
    several keys, the key; and what the client asks for."""
    key = request.headers.get("authorization", "") if len(state.settings.keys) > 1 else ""
    return hashlib.sha256(key.encode() + b"\0" + (given or "").encode()).digest()
