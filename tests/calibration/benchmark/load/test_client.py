"""Clients against a real server, whose own counters must agree, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import httpx
import pytest
from servers import NAME, running

from catp.calibration.benchmark.load.client import Sample, ask
from catp.calibration.benchmark.load.measure import ARRIVALS_OF, measure
from catp.calibration.benchmark.load.report import Setting
from catp.calibration.benchmark.load.targets import Target, find_target, parse_target
from catp.calibration.benchmark.load.workload import POOL, Workload, numbers
from catp.runtime import Pipeline
from catp.runtime.errors import CatpError, UsageError

WORKLOAD = Workload("what is in the picture?", 6, 64, 0, {"min_new_tokens": 6})


def test_a_server_counts_what_the_client_counts(pipeline: Pipeline) -> None:
    settings = [
        Setting(server="ours", pictures=kind, clients=clients, rate=None if clients else 500.0)
        for kind in ("cached", "new")
        for clients in (1, 3, None)
    ]
    with running(pipeline, rows=4) as server:
        target = Target("ours", server.address, NAME)
        samples = measure([target], settings, WORKLOAD, requests=2, rounds=2, timeout=60)
        found = [sample for rounds in samples.values() for of_round in rounds for sample in of_round]
        assert [one.failure for one in found if one.failure] == []
        assert [len(of_round) for rounds in samples.values() for of_round in rounds] == [2, 2, 6, 6, 16, 16] * 2
        assert 2 * ARRIVALS_OF == 16
        assert all(
            one.tokens == 6 and 0 < len(one.pieces) <= 6 and (one.first_ms or 0) <= one.total_ms for one in found
        )
        asked = len(found) + POOL
        assert server.metric("catp_generated_tokens_total") == 6 * asked
        # A picture of the pool is new once, before the rounds; each of the others is new when it is asked about.
        new = sum(len(of_round) for one, rounds in samples.items() if one.pictures == "new" for of_round in rounds)
        assert server.metric("catp_image_cache_requests_total", result="hit") == asked - new - POOL > 0
        assert server.metric("catp_image_cache_requests_total", result="miss") == new + POOL


def test_arrivals_wait_for_nobody(pipeline: Pipeline) -> None:
    """An open loop at a high rate has requests under way at the same time; one client never has."""
    with running(pipeline, rows=4) as server:
        target = Target("ours", server.address, NAME)
        loads = (
            Setting(server="ours", pictures="cached", rate=1000.0),
            Setting(server="ours", pictures="cached", clients=1),
        )
        fast, alone = measure([target], loads, WORKLOAD, requests=2, rounds=1, timeout=60).values()
    assert overlaps(fast[0]) > 0 and overlaps(alone[0]) == 0


def overlaps(samples: list[Sample]) -> int:
    ordered = sorted(samples, key=lambda one: one.began)
    return sum(later.began < earlier.ended for earlier, later in pairwise(ordered))


def test_one_number_is_one_picture() -> None:
    assert WORKLOAD.picture(3) == WORKLOAD.picture(3) != WORKLOAD.picture(4)
    assert Workload("", 1, 64, 1).picture(3) != WORKLOAD.picture(3)
    cached, new = numbers("cached"), numbers("new")
    again = [next(cached) for _ in range(3 * POOL)]
    assert set(again) == set(range(POOL)) and again[:POOL] == again[POOL : 2 * POOL]
    fresh = [next(new) for _ in range(3 * POOL)]
    assert len(set(fresh)) == 3 * POOL and not set(fresh) & set(again)


@contextmanager
def answering(*replies: bytes, end: bytes = b"{}") -> Iterator[str]:
    """A server that reads a request up to its end and writes these bytes, one connection each, whatever was asked."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for reply in replies:
            connection, _ = listener.accept()
            with connection:
                read = b""
                while not read.endswith(end):  # what is left unread would reset the connection
                    read += connection.recv(1 << 16)
                connection.sendall(reply)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        thread.join(10)
        listener.close()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
TEXT = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (HEAD + TEXT + TEXT + DONE, None),
        (HEAD + TEXT, "stream ended early"),
        (HEAD + DONE, "no text"),
        (HEAD + b'data: {"choices": [], "usage": {"completion_tokens": 0}}\n\n' + DONE, "no text"),
        (HEAD + TEXT + b'data: {"error": {"message": "m", "code": "stopping"}}\n\n', "stream stopping"),
        (HEAD + b"data: {nonsense\n\n", "JSONDecodeError"),
        (b"HTTP/1.1 429 x\r\ncontent-length: 32\r\n\r\n" + b'{"error": {"code": "queue_full"}}'[:32], "429"),
        (b'HTTP/1.1 503 x\r\ncontent-length: 31\r\n\r\n{"error": {"code": "starting"}} ', "503 starting"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\ndata:", "RemoteProtocolError"),
    ],
)
def test_what_ends_otherwise_is_a_failure(reply: bytes, failure: str | None) -> None:
    async def one(url: str) -> Sample:
        async with httpx.AsyncClient(base_url=url) as client:
            return await ask(client, b"{}")

    with answering(reply) as url:
        found = asyncio.run(one(url))
    assert found.failure == failure
    # Without usage, tokens are counted as pieces.
    assert (found.tokens, len(found.pieces)) == ((2, 2) if failure is None else (0, 0))


def test_tokens_without_text_are_tokens() -> None:
    """As random weights give them, or an end that has no words."""

    async def one(url: str) -> Sample:
        async with httpx.AsyncClient(base_url=url) as client:
            return await ask(client, b"{}")

    with answering(HEAD + b'data: {"choices": [], "usage": {"completion_tokens": 5}}\n\n' + DONE) as url:
        found = asyncio.run(one(url))
    assert (found.failure, found.tokens, found.first_ms, found.gaps_ms) == (None, 5, None, [])


def test_silence_is_a_failure() -> None:
    async def one(url: str) -> Sample:
        async with httpx.AsyncClient(base_url=url, timeout=0.2) as client:
            return await ask(client, b"{}")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = asyncio.run(one(f"http://127.0.0.1:{listener.getsockname()[1]}"))
    assert found.failure == "time-out"


def test_addresses() -> None:
    assert parse_target("ours=http://127.0.0.1:8000/v1/") == ("ours", "http://127.0.0.1:8000")
    assert parse_target("https://host:1/base") == ("host:1", "https://host:1/base")
    for wrong in ("ours", "ftp://host", "ours=http://", "http://host/?a=b"):
        with pytest.raises(UsageError, match="give NAME=URL"):
            parse_target(wrong)
    with pytest.raises(CatpError, match="no OpenAI-compatible server answers there"):
        find_target("x", "http://127.0.0.1:9", None, None)


def test_models_are_named_where_there_are_several(pipeline: Pipeline) -> None:
    with running({"one": pipeline, "two": pipeline}) as server:
        assert find_target("x", server.address, "two", None).model == "two"
        with pytest.raises(UsageError, match=r"--model \(none\): .* serves one, two; name one of them"):
            find_target("x", server.address, None, None)
    missing = b"HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n"
    with answering(missing, missing, end=b"\r\n\r\n") as url:
        assert find_target("x", url, "any", None).model == "any"
        with pytest.raises(UsageError, match="this server lists no models; say with --model"):
            find_target("x", url, None, None)
    with running(pipeline, keys=("secret",)) as server:
        assert find_target("x", server.address, None, "secret").model == NAME
        with pytest.raises(CatpError, match="status 401; does it want a key"):
            find_target("x", server.address, None, None)
