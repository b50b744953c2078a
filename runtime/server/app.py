"""The HTTP application: its routes, and those of them on which nothing is asked."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from catp.runtime.server import kserve
from catp.runtime.server import metrics as prometheus
from catp.runtime.server.asking import Asking
from catp.runtime.server.engine import ModelEngine
from catp.runtime.server.failures import Failure
from catp.runtime.server.front import Front
from catp.runtime.server.metrics import Metrics
from catp.runtime.server.page import page
from catp.runtime.server.readers import read_chat_request, read_generate_request, read_infer_request
from catp.runtime.server.state import State


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
        Route(f"{v2}/infer", Asking(state, "infer", read_infer_request), methods=["POST"]),
        Route(f"{v2}/versions/1/infer", Asking(state, "infer", read_infer_request), methods=["POST"]),
        Route("/v1/chat/completions", Asking(state, "chat", read_chat_request), methods=["POST"]),
        Route(f"{v2}/generate", Asking(state, "generate", read_generate_request), methods=["POST"]),
        Route(f"{v2}/generate_stream", Asking(state, "generate_stream", read_generate_request), methods=["POST"]),
    ]
    if state.settings.page:
        routes.append(Route("/", page))
    router = Router(routes, redirect_slashes=False, default=_unknown)
    return Front(router, state.settings, lambda: state.draining, partial(_count, state.metrics), state.tracing)


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
