"""Traces as a collector gets them: a real exporter, and a sink that decodes what it sends."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from servers import chat, process, running, wait_for
from typer.testing import CliRunner

from catp.runtime import Pipeline
from catp.runtime.commands.serve import app as serve
from catp.runtime.server import tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@contextmanager
def collector(status: int = 200) -> Iterator[tuple[str, list[ExportTraceServiceRequest]]]:
    """An OTLP endpoint, and what was sent to it."""
    found: list[ExportTraceServiceRequest] = []

    class Sink(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                content = gzip.decompress(content)
            found.append(ExportTraceServiceRequest.FromString(content))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/traces", found
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def spans(found: list[ExportTraceServiceRequest]) -> list[Any]:
    return [
        span for sent in found for part in sent.resource_spans for scope in part.scope_spans for span in scope.spans
    ]


def attributes(span: Any) -> dict[str, Any]:
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes if one.value.ByteSize()
    }


def test_a_request_is_a_span_of_its_client_s_trace(pipeline: Pipeline) -> None:
    with collector() as (url, found):
        with running(pipeline, traces=url) as server:
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"}
            body = chat()
            answer = server.client.post("/v1/chat/completions", json=body, headers=headers).json()
            server.client.post("/v1/chat/completions", json={**body, "n": 2})
            server.client.get("/health/ready")
            server.client.get("/metrics")
        asked, refused = spans(found)  # all that is left is sent at the end; nothing of health and metrics
        (resource,) = {
            one.value.string_value
            for one in found[0].resource_spans[0].resource.attributes
            if one.key == "service.name"
        }
    assert resource == "catp-serve"
    assert (asked.trace_id.hex(), asked.parent_span_id.hex(), asked.name) == (TRACE, PARENT, "chat demo")
    told = attributes(asked)
    assert told["http.response.status_code"] == 200 and told["catp.request_id"] == "mine"
    assert told["gen_ai.usage.input_tokens"] == answer["usage"]["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == answer["usage"]["completion_tokens"]
    assert asked.end_time_unix_nano > asked.start_time_unix_nano
    assert refused.trace_id.hex() != TRACE and attributes(refused)["http.response.status_code"] == 400
    assert attributes(refused)["error.type"] == "invalid_value"
    sent = b"".join(part.SerializeToString() for part in found)
    assert b"bottom right" not in sent and b"base64" not in sent  # as in the log, never a prompt or a picture


def test_a_collector_that_is_away_costs_no_answer(pipeline: Pipeline, demo_bundle: Any) -> None:
    import httpx

    with process(
        str(demo_bundle),
        "--otlp-traces-endpoint",
        "http://127.0.0.1:9/v1/traces",
        OTEL_BSP_SCHEDULE_DELAY="50",
        OTEL_EXPORTER_OTLP_TRACES_TIMEOUT="1",
    ) as (started, url, lines):
        wait_for(lambda: httpx.get(f"{url}/health/ready").status_code == 200, "it is not ready")
        assert httpx.get(f"{url}/v1/models").status_code == 200
        wait_for(lambda: any(line["event"] == "traces" for line in lines), "nothing is said of it")
        started.terminate()
        assert started.wait(60) == 0
    assert all(line["event"] != "text" for line in lines)  # every line is JSON


def test_what_is_wrong_with_it_is_one_line(demo_bundle: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(url: str) -> str:
        result = CliRunner().invoke(serve, [str(demo_bundle), "--port", "0", "--otlp-traces-endpoint", url])
        assert result.exit_code == 2, result.output
        return " ".join(result.output.split())

    assert "--otlp-traces-endpoint localhost:4318: give a URL" in said("localhost:4318")
    monkeypatch.setattr(tracing, "optional_import", lambda name: (None, "is not installed"))
    assert "OpenTelemetry is not installed; install this project's extra: pip install '.[traces]'" in said("http://h:1")
