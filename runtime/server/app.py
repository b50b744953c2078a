"""The HTTP application: routes, and what happens to a request on each."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from catp.runtime.bundle.manifest import Manifest
from catp.runtime.errors import CatpError
from catp.runtime.limits import DECODERS, FETCHES
from catp.runtime.questions import Wishes
from catp.runtime.server import kserve
from catp.runtime.server import metrics as prometheus
from catp.runtime.server.bodies import ChatBody, GenerateBody, GenerateParameters, parse
from catp.runtime.server.dialects import Dialect, KServeGenerate, OpenAiChat
from catp.runtime.server.engine import ModelEngine
from catp.runtime.server.exchange import Exchange, Gate, compact, read_body
from catp.runtime.server.failures import Failure, failure_of
from catp.runtime.server.front import Front, note
from catp.runtime.server.intake import make_job, make_match_job
from catp.runtime.server.jobs import Event, Finished, Job, Matched, Piece
from catp.runtime.server.metrics import Metrics
from catp.runtime.server.page import page
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
        # Those that wait for other hosts keep nobody from decoding.
        self.readers = ThreadPoolExecutor(FETCHES, "catp read") if settings.media_domains else self.decoders
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

    async def read(self, work: Callable[[], Result]) -> Result:
        """A body read, off the event loop; so many at a time."""
        return await asyncio.get_running_loop().run_in_executor(self.readers, work)

    async def decode(self, work: Callable[[], Result]) -> Result:
        """Pictures decoded, likewise."""
        return await asyncio.get_running_loop().run_in_executor(self.decoders, work)

    def close(self) -> None:
        """End the threads."""
        for pool in (self.decoders, self.readers):
            pool.shutdown(wait=False, cancel_futures=True)


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
        Route("/v2", _v2_server),
        Route("/v2/health/live", _live),
        Route("/v2/health/ready", partial(_ready, state)),
        Route(v2, partial(_v2_model, state)),
        Route(f"{v2}/versions/1", partial(_v2_model, state)),
        Route(f"{v2}/ready", partial(_v2_ready, state)),
        Route(f"{v2}/versions/1/ready", partial(_v2_ready, state)),
        Route(f"{v2}/infer", _Asking(state, "infer", _read_infer), methods=["POST"]),
        Route(f"{v2}/versions/1/infer", _Asking(state, "infer", _read_infer), methods=["POST"]),
        Route("/v1/chat/completions", _Asking(state, "chat", _read_chat), methods=["POST"]),
        Route(f"{v2}/generate", _Asking(state, "generate", _read_generate), methods=["POST"]),
        Route(f"{v2}/generate_stream", _Asking(state, "generate_stream", _read_generate), methods=["POST"]),
    ]
    if state.settings.page:
        routes.append(Route("/", page))
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


async def _v2_server(request: Request) -> Response:
    return JSONResponse(kserve.describe_server(package_version()))


async def _v2_model(state: State, request: Request) -> Response:
    engine = state.engine(request.path_params["name"], None)
    return JSONResponse(kserve.describe_model(engine.name, engine.pipeline.manifest))


async def _v2_ready(state: State, request: Request) -> Response:
    engine = state.engine(request.path_params["name"], None)
    return JSONResponse({"name": engine.name, "ready": engine.ready}, 200 if engine.ready else 503)


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


Maker = Callable[[Callable[[Event], None]], Job]
"""Of what hands events to a client: a job. It takes long."""


@dataclasses.dataclass(frozen=True)
class Reading:
    """A request, read.

    Args:
        makers: of its jobs.
        whole: the body of a response that is no stream, of how each job ended.
        dialect: of a stream, which has one job; None: there is none.
    """

    engine: ModelEngine
    makers: Sequence[Maker]
    whole: Callable[[Sequence[Finished | Matched]], dict[str, Any]]
    dialect: Dialect | None = None


Reader = Callable[["State", Request, bytes], Reading]
"""Of a request and its body; raises Failure or CatpError. It takes long."""


class _Asking:
    """A route on which questions are asked; an ASGI application, so that a request's whole life is in one block."""

    def __init__(self, state: State, route: str, read: Reader) -> None:
        self._state = state
        self._route = route
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, state = Request(scope, receive), self._state
        note(scope, route=self._route)
        with state.gate.enter(state.retry_after):
            exchange = Exchange(request)
            reading = await self._take(request, exchange)
            async with exchange.follow():
                for inbox in exchange.inboxes:
                    assert inbox.job is not None
                    reading.engine.submit(inbox.job)
                if reading.dialect is not None:
                    await self._send_stream(request, exchange, send, reading.dialect)
                else:
                    ends = [await inbox.last() for inbox in exchange.inboxes]
                    _note(scope, ends)
                    body = compact(reading.whole(ends))
                    await exchange.send(send, _start("application/json"))
                    await exchange.send(send, {"type": "http.response.body", "body": body})

    async def _take(self, request: Request, exchange: Exchange) -> Reading:
        """A request, its jobs made; neither its body nor its pictures are kept when this returns.

        Raises:
            Failure: there is nothing to be made of it.
        """
        state = self._state
        with state.gate.hold() as chunks:
            body = await read_body(request, state.gate, chunks, state.settings)
            try:
                reading = await state.read(partial(self._read, state, request, body))
                note(request.scope, model=reading.engine.name)
                most = state.settings.rows + state.settings.waiting
                if len(reading.makers) > most:
                    raise Failure(
                        400, f"inputs: {len(reading.makers)} questions; give at most {most}", "too_many", "inputs"
                    )
                for make in reading.makers:
                    inbox = exchange.open_inbox()
                    inbox.job = await state.decode(partial(make, inbox.tell))
                return dataclasses.replace(reading, makers=())
            except CatpError as error:
                raise failure_of(error, request.scope["catp"]["request_id"]) from error

    async def _send_stream(self, request: Request, exchange: Exchange, send: Send, dialect: Dialect) -> None:
        """Events as they come; however it goes, the last one says that it is the last. What fails before the first
        one is a response of its own."""

        async def say(*parts: bytes) -> None:
            await exchange.send(send, {"type": "http.response.body", "body": b"".join(parts), "more_body": True})

        (inbox,) = exchange.inboxes
        event = await inbox.next()
        await exchange.send(send, _start("text/event-stream; charset=utf-8"))
        try:
            opening = [_event(part) for part in dialect.opening()]
            while isinstance(event, Piece):
                if event.text:
                    await say(*opening, _event(dialect.piece(event.text)))
                    opening = []
                event = await inbox.next()
            assert isinstance(event, Finished)
            closing = [_event(part) for part in dialect.closing(event)]
            await say(*opening, *closing, dialect.end or b"")
            _note(request.scope, [event])
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


def _note(scope: Scope, ends: Sequence[Finished | Matched]) -> None:
    """Numbers of answers, for the log."""
    finished = [end for end in ends if isinstance(end, Finished)]
    if finished:
        note(
            scope,
            prompt_tokens=sum(end.answer.num_kept + end.prompt_tokens for end in finished),
            generated_tokens=sum(len(end.answer.token_ids) for end in finished),
            finish_reason=finished[-1].reason,
            image_cached=finished[-1].cached,
        )


def _read_chat(state: State, request: Request, body: bytes) -> Reading:
    asked = parse(ChatBody, body)
    engine = state.engine(asked.model)
    manifest = _generating(engine)
    question = read_chat(asked, manifest, state.settings.prompt_template, state.settings.media_domains)
    tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    wishes = read_wishes(asked, asked.stop, tokens, manifest.generation)
    include_usage = asked.stream_options is not None and asked.stream_options.include_usage
    dialect = OpenAiChat(_id(request), engine.name, include_usage)
    maker = _maker(state, request, engine, question, wishes, asked.cache_salt, bool(asked.explain))
    return Reading(engine, [maker], _whole(dialect), dialect if asked.stream else None)


def _read_generate(state: State, request: Request, body: bytes) -> Reading:
    asked = parse(GenerateBody, body)
    engine = state.engine(request.path_params["name"], None)
    manifest = _generating(engine)
    pictures = read_pictures(asked.image, manifest, "image", state.settings.media_domains)
    question = Asked(asked.text_input, pictures, "image")
    wishes = _wishes(asked.parameters, manifest)
    dialect = KServeGenerate(engine.name, asked.id)
    maker = _maker(state, request, engine, question, wishes, asked.parameters.cache_salt)
    stream = request.url.path.endswith("_stream")
    return Reading(engine, [maker], _whole(dialect), dialect if stream else None)


def _read_infer(state: State, request: Request, body: bytes) -> Reading:
    engine = state.engine(request.path_params["name"], None)
    manifest = engine.pipeline.manifest
    header_length = request.headers.get("inference-header-content-length")
    asked, pictures, texts = kserve.read_infer(body, header_length, manifest)
    whole = partial(kserve.infer_response, engine.name, asked)
    began, given = time.monotonic(), asked.parameters
    if manifest.model.language == "none":
        make = partial(make_match_job, engine, pictures[0], texts, given.ratio, _id(request))
        return Reading(engine, [lambda tell: make(tell, began)], whole)
    wishes = _wishes(given, manifest)
    makers = [
        _maker(state, request, engine, Asked(text, [picture], "inputs"), wishes, given.cache_salt)
        for picture, text in zip(pictures, texts)
    ]
    return Reading(engine, makers, whole)


def _whole(dialect: Dialect) -> Callable[[Sequence[Finished | Matched]], dict[str, Any]]:
    def whole(ends: Sequence[Finished | Matched]) -> dict[str, Any]:
        (end,) = ends
        assert isinstance(end, Finished)
        return dialect.whole(end)

    return whole


def _id(request: Request) -> str:
    return str(request.scope["catp"]["request_id"])


def _generating(engine: ModelEngine) -> Manifest:
    """The manifest of a model that writes text; raises Failure for one that does not."""
    manifest = engine.pipeline.manifest
    if manifest.model.language == "none":
        message = f"model {engine.name!r} scores texts and writes none; use /v2/models/{engine.name}/infer"
        raise Failure(400, message, "unsupported_model", "model")
    return manifest


def _wishes(given: GenerateParameters, manifest: Manifest) -> Wishes:
    tokens = given.max_new_tokens if given.max_tokens is None else given.max_tokens
    return read_wishes(given, given.stop, tokens, manifest.generation)


def _maker(
    state: State,
    request: Request,
    engine: ModelEngine,
    question: Asked,
    wishes: Wishes,
    salt: str | None,
    explains: bool = False,
) -> Maker:
    began, salted = time.monotonic(), salt_of(state, request, salt)
    return lambda tell: make_job(engine, question, wishes, salted, _id(request), tell, began, explains)


def salt_of(state: State, request: Request, given: str | None) -> bytes:
    """A mark of those who may see each other's pictures in the time that an answer takes: the key, where there are
    several; and the salt that the client asks for."""
    key = request.headers.get("authorization", "") if len(state.settings.keys) > 1 else ""
    return hashlib.sha256(key.encode() + b"\0" + (given or "").encode()).digest()
