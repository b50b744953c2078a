"""Limits: what is too large, too many, too slow or without a key is refused by its status, and early."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from servers import IN_TIME, NAME, SAMPLES, Running, chat, data_url, running, wait_for
from starlette.routing import Route

from catp.runtime import Pipeline, UsageError
from catp.runtime.limits import (
    BODY_BYTES,
    CACHE_BYTES,
    CONNECTIONS,
    DRAIN_SECONDS,
    IMAGE_BYTES,
    IMAGE_PIXELS,
    QUEUE_SECONDS,
    QUEUED_PER_ROW,
    READ_SECONDS,
    REQUEST_SECONDS,
    SERVED_LENGTH,
    SERVED_PROMPT_CHARACTERS,
    SERVED_ROWS,
    WAITING_BYTES,
)
from catp.runtime.server.settings import read_keys

KEYS = ("first-key", "second-key")


@pytest.fixture(scope="module")
def server(pipeline: Pipeline) -> Iterator[Running]:
    with running(pipeline, rows=2) as found:
        yield found


LONG = {"max_tokens": 200, "min_new_tokens": 200}


# Pictures.


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header promises that size, in a few bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")

    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


COLOURS = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
BAD: dict[str, tuple[bytes, str]] = {
    "25 Mpx": (png_of(5001, 5000), "5001 x 5000 is more than 25,000,000 pixels"),
    "4 Gpx": (png_of(65535, 65535), "more than"),
    "stretched": (png_of(5000, 2), "stretched more than"),
    "cut off": (encoded(COLOURS, "JPEG")[:-200], "broken or truncated"),
    "cut off PNG": (encoded(COLOURS, "PNG")[:300], "broken or truncated"),
    "GIF": (encoded(COLOURS, "GIF"), "accepted: JPEG, PNG, WebP"),
    "BMP": (encoded(COLOURS, "BMP"), "accepted: JPEG, PNG, WebP"),
    "TIFF": (encoded(COLOURS, "TIFF"), "accepted: JPEG, PNG, WebP"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "accepted: JPEG, PNG, WebP"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "accepted: JPEG, PNG, WebP"),
    "no picture": (b"hello", "accepted: JPEG, PNG, WebP"),
    "animation": (
        encoded(COLOURS, "WEBP", save_all=True, append_images=[COLOURS.rotate(90)], duration=50),
        "an animation",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures(server: Running, name: str) -> None:
    content, said = BAD[name]
    found = server.ask(**chat(picture=content))
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert said in error["message"] and error["code"] == "invalid_image"
    assert "0x" not in error["message"] and "PIL" not in error["message"] and "BytesIO" not in error["message"]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (499, 1), (224, 224)])
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_odd_pictures_are_answered(server: Running, size: tuple[int, int], form: str) -> None:
    assert server.ask(**chat(picture=encoded(COLOURS.resize(size), form))).status_code == 200


def url(address: str) -> dict[str, Any]:
    body = chat()
    body["messages"][0]["content"][0]["image_url"]["url"] = address
    return body


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:1/x.png",
        "https://example.com/x.png",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "//example.com/x",
        "/etc/passwd",
        str(SAMPLES[0].image),
        "HTTP://169.254.169.254/latest/meta-data",
        "gopher://x",
        "",
        "data:",
        "data:text/plain,hello",
        "data:image/png;base64,@@@",
        "data:image/png;base64,",
    ],
)
def test_no_url_is_fetched_and_no_file_is_read(server: Running, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: object, **named: object) -> None:
        raise AssertionError(f"a connection: {arguments}")

    host = server.client  # connected by now
    assert host.get("/health").status_code == 200
    monkeypatch.setattr(socket, "getaddrinfo", fails)
    found = server.ask(**url(address))
    assert found.status_code == 400, found.text
    assert found.json()["error"]["param"] == "messages.0.content.0.image_url.url"


def test_a_picture_of_too_many_bytes(server: Running) -> None:
    content = base64.b64encode(b"\0" * (IMAGE_BYTES + 3)).decode()
    found = server.ask(**url(f"data:image/png;base64,{content}"))
    assert found.status_code == 413 and found.json()["error"]["code"] == "image_too_large"


def test_a_body_of_too_many_bytes(pipeline: Pipeline) -> None:
    with running(pipeline, rows=1, body_bytes=100_000) as server:
        for content in (b" " * 100_001, iter([b" " * 60_000] * 2)):  # with a length, and in chunks without
            found = server.client.post(
                "/v1/chat/completions", content=content, headers={"content-type": "application/json"}
            )
            assert found.status_code == 413 and found.json()["error"]["code"] == "body_too_large"
        assert server.ask().status_code == 200
        wait_for(lambda: server.serving.state.gate.bytes == 0, "it is forgotten")


def test_bytes_that_wait_are_bounded(pipeline: Pipeline) -> None:
    with running(pipeline, rows=1, waiting_bytes=1000) as server:
        found = server.ask(**chat("x" * 2000))
        assert found.status_code == 429 and found.headers["retry-after"] == "1"
        wait_for(lambda: server.serving.state.gate.bytes == 0, "it is forgotten")


# Too many, and too slow.


def test_a_full_queue_refuses_at_once(pipeline: Pipeline, slow: threading.Event) -> None:
    with running(pipeline, rows=2, queue=1) as server:
        found: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: found.append(server.ask(**chat(**LONG)))) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.serving.state.gate.requests == 3, "requests come in")
        began = time.monotonic()
        refused = server.ask()
        assert time.monotonic() - began < 2 and not found
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        with pytest.raises(openai.RateLimitError):
            openai.OpenAI(base_url=f"{server.address}/v1", api_key="x", max_retries=0).chat.completions.create(**chat())
        assert server.metric("catp_rejections_total", reason="queue_full") == 2
        slow.set()
        for thread in threads:
            thread.join(IN_TIME)
        assert [response.status_code for response in found] == [200] * 3


def test_time_in_the_queue_is_bounded(pipeline: Pipeline, slow: threading.Event) -> None:
    with running(pipeline, rows=1, queue_seconds=0.3) as server:
        first = threading.Thread(target=lambda: server.ask(**chat(**LONG)))
        first.start()
        wait_for(lambda: server.metric("catp_requests_running") == 1, "it runs")
        late = server.ask()
        assert late.status_code == 408 and "no row was free within 0.3 s" in late.json()["error"]["message"]
        slow.set()
        first.join(IN_TIME)


def test_time_of_a_request_is_bounded(pipeline: Pipeline, slow: threading.Event) -> None:
    with running(pipeline, rows=1, request_seconds=0.5) as server:
        late = server.ask(**chat(**LONG))
        assert late.status_code == 504 and late.json()["error"]["code"] == "request_timeout"
        text = server.ask(**chat(**LONG, stream=True)).text
        assert "no answer within 0.5 s" in text.split("\n\n")[-2]  # a stream ends with what ended it
        assert "[DONE]" not in text
        slow.set()
        assert server.ask().status_code == 200


def test_a_body_that_never_ends(pipeline: Pipeline) -> None:
    with running(pipeline, rows=1, read_seconds=0.3) as server:
        host, port = server.address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), IN_TIME) as connection:
            head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            connection.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 408 ")
        wait_for(lambda: server.serving.state.gate.requests == 0, "it is forgotten")


def test_those_that_send_slowly_take_nobody_s_place(pipeline: Pipeline) -> None:
    with running(pipeline, rows=1, queue=0) as server:
        host, port = server.address.removeprefix("http://").split(":")
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        with contextlib.ExitStack() as stack:
            for _ in range(5):
                connection = stack.enter_context(socket.create_connection((host, int(port)), IN_TIME))
                connection.sendall(f"{head}content-length: 1000\r\n\r\n{{".encode())
            wait_for(lambda: server.serving.state.gate.bodies == 5, "they are read")
            assert server.ask().status_code == 200
        wait_for(lambda: server.serving.state.gate.empty and not server.serving.state.gate.bytes, "they are forgotten")


def test_headers_that_never_end(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("READ_SECONDS", "_KEEP_ALIVE_SECONDS"):
        monkeypatch.setattr(f"catp.runtime.server.serving.{name}", 0.3)
    with running(pipeline, rows=1) as server:
        host, port = server.address.removeprefix("http://").split(":")
        for beginning in (b"", b"POST /v1/chat", b"GET /health HTTP/1.1\r\nhost: x\r\n\r\nGET /hea"):
            with socket.create_connection((host, int(port)), IN_TIME) as connection:
                connection.sendall(beginning)
                while connection.recv(4096):
                    pass  # until it is closed


def test_pieces_are_sent_at_once(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """No piece waits for an acknowledgement (Nagle's algorithm)."""
    found, make = [], socket.socket.setsockopt

    def noted(connection: socket.socket, *option: Any) -> None:
        if str(connection.getsockname()[1]) == server.address.rpartition(":")[2]:  # the server's end
            found.append(option)
        make(connection, *option)

    monkeypatch.setattr(socket.socket, "setsockopt", noted)
    with httpx.Client(base_url=server.address) as client:
        client.get("/health")
    assert (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in found


# Keys.


def test_every_path_but_health_needs_a_key(pipeline: Pipeline) -> None:
    with running(pipeline, rows=1, keys=KEYS) as server:
        routes = server.serving.app.app.routes  # type: ignore[attr-defined]
        paths = {
            route.path.replace("{name:path}", NAME).replace("{name}", NAME)
            for route in routes
            if isinstance(route, Route)
        }
        assert len(paths) > 8
        paths |= {"/nothing", "/metrics/", "/health/../metrics", "/HEALTH"}
        for path in sorted(paths):
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": "Basic first-key"},
                {"api-key": KEYS[0]},
            ):
                for method in ("GET", "POST", "OPTIONS"):
                    status = server.client.request(method, path, headers=headers).status_code
                    if path in ("/health", "/health/live", "/health/ready", "/"):
                        assert status in (200, 405), path
                    else:
                        assert status == 401, (method, path, status)
        for key in KEYS:
            client = openai.OpenAI(base_url=f"{server.address}/v1", api_key=key)
            assert client.models.list().data[0].id == NAME
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=f"{server.address}/v1", api_key="none").models.list()


def test_keys_come_from_a_file_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CATP_API_KEY", raising=False)
    assert read_keys(None) == ()
    monkeypatch.setenv("CATP_API_KEY", "abc")
    assert read_keys(None) == ("abc",)
    file = tmp_path / "keys"
    file.write_text("one\n\ntwo \n")
    assert read_keys(file) == ("one", "two")
    for content in ("", "\n", "two words", "schlüssel"):
        file.write_text(content)
        with pytest.raises(UsageError, match=r"^--api-key-file"):
            read_keys(file)
    with pytest.raises(UsageError, match="can't be read"):
        read_keys(tmp_path / "missing")
    monkeypatch.setenv("CATP_API_KEY", "")
    with pytest.raises(UsageError, match="it holds no key"):  # a key was meant
        read_keys(None)


# Ids and logs.


def log_of(capsys: pytest.CaptureFixture[str], requests: int) -> str:
    """The log, once so many requests are in it: each is written after its answer was sent."""
    seen = [""]

    def there() -> bool:
        seen[0] += capsys.readouterr().err
        return seen[0].count('"event": "request"') >= requests

    wait_for(there, "requests are logged")
    return seen[0]


def test_ids_are_echoed_and_bodies_are_not_logged(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    secret = "zebra crossing"
    for given, kept in (("abc-1.2_3", True), ("a b", False), ("x" * 200, False), ('"', False)):
        found = server.client.post("/v1/chat/completions", json=chat(secret), headers={"x-request-id": given})
        assert (found.headers["x-request-id"] == given) == kept
    server.ask(**chat(secret, ratio=7))
    server.ask(model=NAME, messages=secret)
    logged = log_of(capsys, 6)
    assert logged.count('"event": "request"') == 6 and '"request_id": "abc-1.2_3"' in logged
    assert secret not in logged and data_url()[30:60] not in logged


def test_every_line_of_the_log_is_json(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), IN_TIME) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    server.client.get("/%E2%80%A8%1B%5B31m")
    lines = [json.loads(line) for line in log_of(capsys, 1).splitlines()]
    assert [line["event"] for line in lines] == ["http", "request"]
    assert lines[0]["message"] == "Invalid HTTP request received." and lines[1]["status"] == 404


# The documents.


def test_the_page_names_every_limit_with_its_default() -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text()
    defaults = {
        "--rows": SERVED_ROWS,
        "--max-length": SERVED_LENGTH,
        "--queue": f"{QUEUED_PER_ROW} for each row",
        "--queue-timeout": f"{QUEUE_SECONDS:g} s",
        "--request-timeout": f"{REQUEST_SECONDS:g} s",
        "--drain-timeout": f"{DRAIN_SECONDS:g} s",
        "--admissions-per-step": 1,
        "--cache": f"{CACHE_BYTES >> 20} MB",
    }
    for option, default in defaults.items():
        assert f"| `{option}` | {default} |" in page
    for said in (
        f"bodies of {BODY_BYTES >> 20} MiB, pictures of {IMAGE_BYTES >> 20} MiB and {IMAGE_PIXELS // 10**6} megapixels",
        f"{SERVED_PROMPT_CHARACTERS} characters",
        f"{WAITING_BYTES >> 20} MiB of bodies",
        f"{READ_SECONDS:g} seconds for headers",
        f"{CONNECTIONS} connections",
    ):
        assert said in " ".join(page.split()), said
