"""The published document: it names everything that is served, and schemathesis finds no answer that it does not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from servers import NAME, running
from starlette.routing import Route

from catp.runtime import Pipeline

TESTS = Path(__file__).parents[2]
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "unsupported_method",
)  # fmt: skip
EXAMPLES = 40
"""Of each operation, beside those that its schema's boundaries give."""


def test_it_has_every_route_and_says_which_need_the_key(pipeline: Pipeline) -> None:
    with running(pipeline, rows=1, keys=("secret",)) as server:
        assert server.client.get("/openapi.json").status_code == 401
        found = server.client.get("/openapi.json", headers={"authorization": "Bearer secret"}).json()
        routes = server.serving.app.app.routes  # type: ignore[attr-defined]
        served = {
            (route.path.replace(":path}", "}"), method.lower())
            for route in routes
            if isinstance(route, Route)
            for method in (route.methods or set()) - {"HEAD"}
        }
        described = {(path, method) for path, methods in found["paths"].items() for method in methods}
        assert served == described and len(served) >= 20
        for path, methods in found["paths"].items():
            for method, operation in methods.items():
                locked = server.client.request(method, path.replace("{name}", NAME), content=b"").status_code == 401
                assert locked == ("security" in operation) == ("401" in operation["responses"]), path
        names = {operation["operationId"] for methods in found["paths"].values() for operation in methods.values()}
        assert len(names) == len(described)
        assert found["components"]["schemas"]["ChatBody"]["properties"]["model"]["enum"] == [NAME]
        assert found["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    with running(pipeline, rows=1, page=False) as server:
        found = server.client.get("/openapi.json").json()
        assert "/" not in found["paths"] and "securitySchemes" not in found["components"]


def test_a_method_that_is_not_served_says_which_is(pipeline: Pipeline) -> None:
    with running(pipeline, rows=1) as server:
        refused = server.client.delete("/v1/chat/completions")
        assert refused.status_code == 405 and refused.headers["allow"] == "POST"


@pytest.mark.heavy
@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="schemathesis is not there")
@pytest.mark.parametrize(
    ("bundle", "paths", "answered"),
    [
        ("demo_bundle", "", ("chat", "generate", "generate_stream", "infer")),
        ("retrieval_bundle", "embeddings|infer|models/?", ("embeddings", "infer")),
    ],
)
def test_no_answer_is_another_than_it_says(
    bundle: str, paths: str, answered: tuple[str, ...], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with running(Pipeline.load(request.getfixturevalue(bundle)), rows=2) as server:
        command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
        command += [
            f"{server.address}/openapi.json",
            "--checks",
            ",".join(CHECKS),
            "--seed",
            "7",
            "--no-color",
            "--request-timeout",
            "60",
        ]
        command += ["--phases", "examples,coverage,fuzzing", "--max-examples", str(EXAMPLES), "--continue-on-failure"]
        command += ["--include-path-regex", paths] if paths else []
        text = "text" if answered[0] == "embeddings" else "prompt"
        environment = {**os.environ, "SCHEMATHESIS_HOOKS": "openapi_hooks", "TEXT_TENSOR": text}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), str(TESTS), str(TESTS.parent)])
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500)
        assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
        assert "Tested: " in ran.stdout and "failed" not in ran.stdout
        for route in answered:
            assert server.metric("catp_requests_total", route=route, outcome="ok") >= 6, route
            assert server.metric("catp_requests_total", route=route, outcome="refused") >= 50, route
            assert not server.metric("catp_requests_total", route=route, outcome="failed"), route
