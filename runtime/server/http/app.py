"""The HTTP application: its routes, and those of them on which nothing is asked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Router
from starlette.types import Receive, Scope, Send

from catp.runtime.server import metrics as prometheus
from catp.runtime.server import shapes
from catp.runtime.server.failures import Failure
from catp.runtime.server.http.asking import Asking
from catp.runtime.server.http.front import Front
from catp.runtime.server.http.page import page
from catp.runtime.server.http.readers import (
    read_chat_request,
    read_embeddings_request,
    read_generate_request,
    read_infer_request,
)
from catp.runtime.server.http.state import State
from catp.runtime.server.metrics import Metrics
from catp.runtime.server.model.engine import ModelEngine
from catp.runtime.server.protocols import kserve
from catp.runtime.server.protocols.dialects import KServeGenerate, OpenAiChat
from catp.runtime.server.protocols.openapi import describe
from catp.runtime.server.protocols.operations import Operation
from catp.runtime.server.reading.bodies import ChatBody, EmbeddingsBody, GenerateBody


def make_app(state: State) -> Front:
    """The whole application, with what stands before every route."""
    operations = make_operations(state)
    router = Router([operation.route() for operation in operations], redirect_slashes=False, default=_unknown)
    return Front(
        router, state.settings, operations, lambda: state.draining, partial(_count, state.metrics), state.tracing
    )


def make_operations(state: State) -> list[Operation]:
    """Everything that is served."""
    v2 = "/v2/models/{name}"
    health: Any = {"answer": shapes.Ready, "statuses": (200, 503), "while_draining": True}
    unlocked: Any = {"needs_key": False, "logged": False, "traced": False}
    ready, v2_ready = partial(_ready, state), partial(_v2_ready, state)
    is_ready: Any = {"summary": "Whether a model is ready", "answer": shapes.ModelReady, "statuses": (200, 503)}
    tensors: Any = {"summary": "A model's tensors", "answer": shapes.ModelMetadata}
    infer: Any = {
        "summary": "Answer questions, or score texts, given as tensors",
        "body": kserve.InferBody,
        "answer": shapes.Inferred,
        "binary": True,
    }
    operations = [
        Operation("/health", ready, "Whether all models are ready", **health, **unlocked),
        Operation("/health/ready", ready, "Whether all models are ready", **health, **unlocked),
        Operation("/health/live", _live, "A sign of life", shapes.Live, while_draining=True, **unlocked),
        Operation(
            "/metrics",
            partial(_metrics, state),
            "Metrics for Prometheus",
            "text/plain",
            while_draining=True,
            traced=False,
        ),
        Operation("/version", _version, "The version of the server", shapes.Version),
        Operation("/openapi.json", lambda request: JSONResponse(document()), "This document", dict[str, Any]),
        Operation("/v1/models", partial(_models, state), "The models that are served", shapes.ModelList),
        Operation("/v1/models/{name:path}", partial(_model, state), "A model", shapes.Model),
        Operation(
            "/v1/chat/completions",
            Asking(state, "chat", read_chat_request),
            "Answer a question about a picture",
            shapes.ChatCompletion,
            ChatBody,
            stream=OpenAiChat,
        ),
        Operation(
            "/v1/embeddings",
            Asking(state, "embeddings", read_embeddings_request),
            "Embed texts and pictures",
            shapes.EmbeddingList,
            EmbeddingsBody,
        ),
        Operation("/v2", _v2_server, "The server", shapes.ServerMetadata),
        Operation("/v2/health/live", _live, "A sign of life", shapes.Live, while_draining=True),
        Operation("/v2/health/ready", ready, "Whether all models are ready", **health),
        Operation(v2, partial(_v2_model, state), **tensors),
        Operation(f"{v2}/versions/1", partial(_v2_model, state), **tensors),
        Operation(f"{v2}/ready", v2_ready, **is_ready),
        Operation(f"{v2}/versions/1/ready", v2_ready, **is_ready),
        Operation(f"{v2}/infer", Asking(state, "infer", read_infer_request), **infer),
        Operation(f"{v2}/versions/1/infer", Asking(state, "infer", read_infer_request), **infer),
        Operation(
            f"{v2}/generate",
            Asking(state, "generate", read_generate_request),
            "Answer a question about a picture",
            shapes.Generated,
            GenerateBody,
        ),
        Operation(
            f"{v2}/generate_stream",
            Asking(state, "generate_stream", read_generate_request),
            "Answer a question about a picture, as a stream",
            None,
            GenerateBody,
            stream=KServeGenerate,
        ),
    ]
    if state.settings.page:
        operations.append(Operation("/", page, "A page to ask in a browser", "text/html", needs_key=False))

    @cache
    def document() -> dict[str, Any]:
        return describe(operations, state.engines, bool(state.settings.keys), package_version())

    return operations


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
    found: shapes.Ready = {
        "status": "draining" if state.draining else "ready" if state.ready else "not ready",
        "models": {name: "ready" if engine.ready else "not ready" for name, engine in state.engines.items()},
    }
    return JSONResponse(found, 200 if state.ready else 503)


async def _live(request: Request) -> Response:
    found: shapes.Live = {"status": "live"}
    return JSONResponse(found)


async def _metrics(state: State, request: Request) -> Response:
    return PlainTextResponse(state.metrics.text(), media_type=prometheus.CONTENT_TYPE)


def package_version() -> str:
    """The version that is installed; "0" in a clone that nothing was installed from."""
    try:
        return version("catp-exporter")
    except PackageNotFoundError:
        return "0"


async def _version(request: Request) -> Response:
    found: shapes.Version = {"version": package_version()}
    return JSONResponse(found)


async def _models(state: State, request: Request) -> Response:
    found: shapes.ModelList = {"object": "list", "data": [_described(engine) for engine in state.engines.values()]}
    return JSONResponse(found)


async def _model(state: State, request: Request) -> Response:
    return JSONResponse(_described(state.engine(request.path_params["name"])))


async def _v2_server(request: Request) -> Response:
    return JSONResponse(kserve.describe_server(package_version()))


async def _v2_model(state: State, request: Request) -> Response:
    engine = state.engine(request.path_params["name"], None)
    return JSONResponse(kserve.describe_model(engine.name, engine.pipeline.manifest))


async def _v2_ready(state: State, request: Request) -> Response:
    engine = state.engine(request.path_params["name"], None)
    found: shapes.ModelReady = {"name": engine.name, "ready": engine.ready}
    return JSONResponse(found, 200 if found["ready"] else 503)


def _described(engine: ModelEngine) -> shapes.Model:
    found: shapes.Model = {"id": engine.name, "object": "model", "created": engine.created, "owned_by": "catp"}
    if engine.ready:
        manifest = engine.pipeline.manifest
        vote = manifest.vote
        found["catp"] = {
            "source": manifest.model.id,
            "family": manifest.model.family,
            "precision": manifest.precision_label,
            "method": vote.method if vote else "none",
            "ratio": vote.ratio if vote else 0.0,
            "keep_mass": vote.keep_mass if vote else None,
            "num_query_tokens": vote.num_query_tokens if vote else 0,
            "max_length": engine.length,
        }
    return found
