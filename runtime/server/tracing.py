"""Traces: a span for each request, sent to a collector by OpenTelemetry's protocol (OTLP over HTTP)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from catp.runtime.errors import UsageError
from catp.runtime.system.optional_imports import optional_import

_FACTS = {
    # Names of OpenTelemetry's conventions for HTTP and for generative models, and our own beside them.
    "status": "http.response.status_code",
    "model": "gen_ai.request.model",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "generated_tokens": "gen_ai.usage.output_tokens",
    "route": "catp.route",
    "request_id": "catp.request_id",
    "image_cached": "catp.image_cached",
    "code": "error.type",
}
"""Attributes of a span, by the facts that the log has."""


class Tracing:
    """The spans of a server. What a request says of the trace that it belongs to (`traceparent`) is followed.

    Args:
        endpoint: a URL that takes OTLP, such as http://127.0.0.1:4318/v1/traces. Headers, time-outs and sampling are
            read from OpenTelemetry's own variables of the environment (OTEL_...).

    Raises:
        UsageError: the libraries are not installed, or it is no URL.
    """

    def __init__(self, endpoint: str) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--otlp-traces-endpoint {endpoint}: give a URL, such as http://127.0.0.1:4318/v1/traces")
        trace, missing = optional_import("opentelemetry.sdk.trace")
        exporter, missing_too = optional_import("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        if trace is None or exporter is None:
            raise UsageError(
                f"--otlp-traces-endpoint: OpenTelemetry {missing or missing_too}; install this project's extra: "
                "pip install '.[traces]'"
            )
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        name = os.environ.get("OTEL_SERVICE_NAME", "catp-serve")
        resource = Resource.create({SERVICE_NAME: name})
        self._provider = trace.TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter.OTLPSpanExporter(endpoint=endpoint)))
        self._tracer = self._provider.get_tracer("catp.runtime.server")
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, method: str, path: str, headers: Headers) -> Any:
        """The span of a request that has come."""
        from opentelemetry.trace import SpanKind

        parent = self._propagator.extract({"traceparent": headers.get("traceparent", "")})
        attributes = {"http.request.method": method, "url.path": path[:200]}
        return self._tracer.start_span(method, context=parent, kind=SpanKind.SERVER, attributes=attributes)

    def end(self, span: Any, facts: Mapping[str, Any]) -> None:
        """The request is over.

        Args:
            facts: as the log has them; never a prompt, a picture or an answer.
        """
        from opentelemetry.trace import StatusCode

        if "route" in facts:
            span.update_name(f"{facts['route']} {facts.get('model', '')}".strip())
        span.set_attributes({name: facts[fact] for fact, name in _FACTS.items() if fact in facts})
        if "finish_reason" in facts:
            span.set_attribute("gen_ai.response.finish_reasons", [facts["finish_reason"]])
        if facts["status"] >= 500:
            span.set_status(StatusCode.ERROR)
        span.end()

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()
