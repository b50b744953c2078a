"""SIGHUP: bundles are opened again under load, and no request notices but by its answer."""

from __future__ import annotations

import shutil
import signal
import threading
from pathlib import Path

import httpx
import pytest
from servers import IN_TIME, chat, process, running, wait_for

from catp.runtime import Pipeline
from catp.runtime.bundle.folder import open_bundle, write_manifest
from catp.runtime.errors import BundleError
from catp.runtime.server.http.exchange import Gate


def with_ratio(bundle: Path, ratio: float) -> None:
    """Change how many tokens the bundle keeps unless a request says otherwise."""
    manifest = open_bundle(bundle).manifest
    write_manifest(bundle, manifest.model_copy(update={"vote": manifest.pruning.model_copy(update={"ratio": ratio})}))


def test_no_request_fails_while_models_are_replaced(demo_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    with_ratio(bundle, 0.5)
    statuses: list[int] = []
    kept: list[int] = []
    ended = threading.Event()
    with process("--model", f"demo={bundle}") as (started, url, lines):
        wait_for(lambda: httpx.get(f"{url}/health/ready").status_code == 200, "it is not ready")

        def ask() -> None:
            with httpx.Client(base_url=url, timeout=IN_TIME) as client:
                while not ended.is_set():
                    answer = client.post("/v1/chat/completions", json=chat(min_new_tokens=8, max_tokens=8))
                    statuses.append(answer.status_code)
                    kept.append(answer.json()["catp"]["num_kept"])

        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        try:
            wait_for(lambda: 16 in kept, "the first bundle does not answer")
            with_ratio(bundle, 0.75)
            started.send_signal(signal.SIGHUP)
            wait_for(lambda: 8 in kept, "the second bundle does not answer")
            (reloaded,) = (line for line in lines if line["event"] == "reloaded")
            assert reloaded["model"] == "demo" and reloaded["changed"] is True
            assert httpx.get(f"{url}/health/ready").status_code == 200

            (bundle / "catp.json").write_text("{}")  # a bundle that can't be loaded leaves the old one
            started.send_signal(signal.SIGHUP)
            wait_for(lambda: any(line["event"] == "reload_failed" for line in lines), "it says nothing")
            answered = len(statuses)
            wait_for(lambda: len(statuses) > answered + 6, "it has stopped answering")
        finally:
            ended.set()
            for client in clients:
                client.join(IN_TIME)
        assert set(statuses) == {200}
        assert set(kept) == {16, 8} and kept[-1] == 8
        started.send_signal(signal.SIGTERM)
        assert started.wait(IN_TIME) == 0


def test_the_old_model_ends_when_its_last_request_has(pipeline: Pipeline, slow: threading.Event) -> None:
    """A long answer that the old model began is ended by it, whole; then its thread is gone."""
    with running(pipeline, rows=2, length=256) as server:
        old = server.engine
        body = chat(stream=True, min_new_tokens=150, max_tokens=150, ratio=0.9)
        with server.client.stream("POST", "/v1/chat/completions", json=body) as stream:
            parts = stream.iter_lines()
            next(parts)
            server.serving.reload()
            wait_for(lambda: server.serving.engines["demo"] is not old, "no model took over")
            assert old.in_flight == 1 and old.ready  # as it was at the switch, and still is
            assert server.ask(**chat()).json()["choices"][0]["message"]["content"] == "a black diamond"
            slow.set()
            rest = [part for part in parts if part]
        assert rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
        wait_for(lambda: not server.serving._reloading.retired, "the old model's thread has not ended")
        assert not old.ready and server.serving.engines["demo"].ready
        assert server.metric("catp_model_ready", model="demo") == 1


def test_a_model_that_fails_later_still_ends_the_server(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only until it takes over is a failure of the new model none of the server's."""
    loads = [pipeline]

    def load() -> Pipeline:
        if not loads:
            raise BundleError("gone")
        return loads.pop()

    with running(pipeline) as server:
        server.serving._reloading._loaders = {"demo": load}
        old = server.engine
        server.serving.reload()
        wait_for(lambda: server.serving.engines["demo"] is not old, "no model took over")
        second = server.serving.engines["demo"]
        server.serving.reload()  # there is nothing left to load
        wait_for(lambda: not loads and not server.serving._reload, "it was not tried")
        wait_for(lambda: not server.serving._reloading.retired, "what failed is kept")
        assert server.serving.engines["demo"] is second and server.ask().status_code == 200
        assert not server.serving._ended
        second._ended(RuntimeError("dead"))  # as its thread would
        assert server.serving._ended
        server.serving._error = None


def test_which_requests_were_in_before() -> None:
    gate = Gate(3, 0)
    with gate.enter(1):
        with gate.enter(1):
            before = gate.entered
            assert (before, gate.requests) == (2, 2)
        with gate.enter(1):
            assert gate.has_any_of_first(before) and not gate.has_any_of_first(0)
    assert not gate.has_any_of_first(before) and gate.empty
