"""The life of a server: it is ready once it is warm, clients come and go, it drains, and what breaks is said."""

from __future__ import annotations

import io
import itertools
import shutil
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from servers import IN_TIME, NAME, SAMPLES, chat, process, running, wait_for
from typer.testing import CliRunner

from catp.runtime import CatpError, GraphError, Pipeline
from catp.runtime.commands.serve import app
from catp.runtime.generation.together import Together
from catp.runtime.inputs.text_stream import TextStream
from catp.runtime.language_models.slots import Slots
from catp.runtime.server.model.engine import ModelEngine

LONG = {"max_tokens": 200, "min_new_tokens": 200}


def stream_long(client: openai.OpenAI, **fields: Any) -> openai.Stream[Any]:
    body = {**chat(max_tokens=200), **fields}
    return client.chat.completions.create(**body, stream=True, extra_body={"min_new_tokens": 200})


# Clients that go away.


def test_a_stream_that_is_closed_ends_its_row_within_two_steps(pipeline: Pipeline, slow: threading.Event) -> None:
    with running(pipeline, rows=2) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="x", max_retries=0)
        stream = stream_long(client)
        next(iter(stream))
        stream.response.close()
        wait_for(lambda: server.metric("catp_cancellations_total") == 1, "it is noticed")
        steps = server.metric("catp_decode_steps_total")
        time.sleep(0.2)  # ten steps' time
        assert server.metric("catp_decode_steps_total") <= steps + 1 < 150
        assert server.metric("catp_requests_running") == 0
        slow.set()
        assert server.ask().status_code == 200
        wait_for(lambda: server.serving.state.gate.requests == 0, "it is forgotten")


def test_cancel_means_no_step_later_than_two(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted where rows are fed, not by time."""
    fed, step = [], Slots.step

    def counted(slots: Slots, tokens: Any) -> None:
        fed.append(time.monotonic())
        if len(fed) == 10:
            job.cancel()
        step(slots, tokens)

    with running(pipeline, rows=1) as server:
        submit = server.engine.submit
        monkeypatch.setattr(server.engine, "submit", lambda made: (keep(made), submit(made)))
        monkeypatch.setattr(Slots, "step", counted)

        def keep(made: Any) -> None:
            nonlocal job
            job = made

        job: Any = None
        assert server.client.post("/v1/chat/completions", json=chat(**LONG)).status_code >= 400
        assert len(fed) <= 12


@pytest.mark.parametrize("stage", ["queued", "whole"])
def test_a_client_that_waits_may_go_too(pipeline: Pipeline, slow: threading.Event, stage: str) -> None:
    with running(pipeline, rows=1) as server:
        first = threading.Thread(target=lambda: server.ask(**chat(**LONG)))
        if stage == "queued":
            first.start()
            wait_for(lambda: server.metric("catp_requests_running") == 1, "it runs")
        with pytest.raises(httpx.ReadTimeout), httpx.Client(base_url=server.address, timeout=0.3) as client:
            client.post("/v1/chat/completions", json=chat(**LONG))
        wait_for(lambda: server.metric("catp_cancellations_total") == 1, "it is noticed")
        assert server.metric("catp_requests_waiting") == 0
        slow.set()
        if stage == "queued":
            first.join(IN_TIME)
        wait_for(lambda: server.serving.state.gate.requests == 0, "all are gone")


def test_clients_that_vanish_lose_no_row(pipeline: Pipeline) -> None:
    """Connections are reset at random moments of a stream, as `kill -9` of a client does."""
    rng = np.random.default_rng(0)
    with running(pipeline, rows=3) as server:
        host, port = server.address.removeprefix("http://").split(":")
        request = httpx.Request("POST", server.address, json=chat(stream=True, **LONG))
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        message = f"{head}content-length: {len(request.content)}\r\n\r\n".encode() + request.content

        def vanish(pause: float) -> None:
            with socket.create_connection((host, int(port)), IN_TIME) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset, not closed
                connection.sendall(message[: int(len(message) * min(1, 3 * pause / 0.05))])
                time.sleep(pause)

        for _ in range(10):
            threads = [threading.Thread(target=vanish, args=(pause,)) for pause in rng.random(6) * 0.05]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(IN_TIME)
        wait_for(lambda: server.serving.state.gate.requests == 0, "all are gone")
        wait_for(lambda: server.engine.in_flight == 0, "no row is lost")
        assert server.ask().json()["choices"][0]["message"]["content"] == "a black diamond"


# Start, drain, end.


def test_ready_only_once_it_is_warm(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    warm, go = ModelEngine._warm_up, threading.Event()

    def held(engine: ModelEngine, loaded: Pipeline) -> None:
        go.wait(IN_TIME)
        warm(engine, loaded)

    monkeypatch.setattr(ModelEngine, "_warm_up", held)
    with running(pipeline, wait=False) as server:
        assert server.client.get("/health/live").status_code == 200
        for path in ("/health", "/health/ready"):
            found = server.client.get(path)
            assert found.status_code == 503 and found.json()["models"] == {NAME: "not ready"}
        refused = server.ask()
        assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
        assert server.client.get("/v1/models").json()["data"][0]["id"] == NAME
        go.set()
        wait_for(lambda: server.client.get("/health/ready").status_code == 200, "it becomes ready")
        assert isinstance(server.engine._together, Together)
        slots = server.engine._together.seats
        assert isinstance(slots, Slots) and sorted(slots._steps) == slots.buckets  # nothing is left to allocate
        assert server.ask().status_code == 200


def test_a_thread_without_a_sign_of_life_is_not_ready(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    go, step = threading.Event(), Together.step
    monkeypatch.setattr(Together, "step", lambda together: (go.wait(IN_TIME), step(together))[1])
    monkeypatch.setattr("catp.runtime.server.model.engine.STALL_SECONDS", 0.5)
    monkeypatch.setattr(ModelEngine, "_warm_up", lambda engine, loaded: None)
    with running(pipeline) as server:
        thread = threading.Thread(target=lambda: server.ask(**chat(max_tokens=3, min_new_tokens=3)))
        thread.start()
        wait_for(lambda: server.client.get("/health/ready").status_code == 503, "it is noticed")
        assert server.client.get("/health/live").status_code == 200
        go.set()
        wait_for(lambda: server.client.get("/health/ready").status_code == 200, "it lives again")
        thread.join(IN_TIME)


def test_sigterm_lets_streams_end(demo_bundle: Path) -> None:
    with process(str(demo_bundle), "--rows", "4", step_seconds=0.005) as (started, address, lines):
        wait_for(lambda: httpx.get(f"{address}/health/ready").status_code == 200, "it is ready")
        client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0, timeout=IN_TIME)
        body = {**chat(**LONG), "model": demo_bundle.resolve().name}
        streams = [stream_long(client, model=body["model"]) for _ in range(8)]
        with httpx.Client(base_url=address) as probe:
            assert probe.get("/health/ready").status_code == 200
            started.send_signal(signal.SIGTERM)
            ready = [probe.get("/health/ready").status_code]
            while ready[-1] == 200:
                ready.append(probe.get("/health/ready").status_code)
            assert ready[-1] == 503 and len(ready) < 100  # before the socket closes, at once
            assert [probe.get(path).status_code for path in ("/health/live", "/v2/health/live", "/metrics")] == [
                200
            ] * 3
            assert probe.get("/v2/health/ready").status_code == 503
            refused = probe.post("/v1/chat/completions", json=body)
            assert refused.status_code == 503 and refused.json()["error"]["code"] == "stopping"
        for stream in streams:
            *_, last = stream
            assert last.choices[0].finish_reason == "length"
        assert started.wait(IN_TIME) == 0
        assert lines[-1]["event"] == "stopped" and not lines[-1]["cut_off"]


def test_a_drain_that_takes_too_long_cuts_off_with_an_error_event(pipeline: Pipeline, slow: threading.Event) -> None:
    texts: list[str] = []
    with pytest.raises(CatpError, match="cut off"), running(pipeline, rows=1, drain_seconds=0.2) as server:
        threads = [
            threading.Thread(target=lambda: texts.append(server.ask(**chat(**LONG, stream=True)).text)),
            threading.Thread(target=lambda: texts.append(server.ask(**chat(**LONG)).text)),
        ]
        for thread in threads:
            thread.start()
        wait_for(lambda: server.engine.in_flight == 2, "they came")
        server.serving.told(1)
        for thread in threads:
            thread.join(IN_TIME)
    assert len(texts) == 2 and all('"code":"stopping"' in text for text in texts)


def test_a_dead_thread_ends_the_process(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    with pytest.raises(CatpError, match=r"thread has ended \(MemoryError\)"), running(pipeline) as server:
        count = 0
        step = Together.step

        def fails(together: Together) -> Any:
            nonlocal count
            count += 1
            if count > 3:
                raise MemoryError
            return step(together)

        monkeypatch.setattr(Together, "step", fails)
        texts.append(server.ask(**chat(**LONG, stream=True)).text)
        assert '"code":"engine_dead"' in texts[0].split("\n\n")[-2]
        until = time.monotonic() + IN_TIME
        while time.monotonic() < until:
            try:
                server.client.get("/health/live")
            except httpx.HTTPError:
                break
    assert time.monotonic() < until


def test_a_failing_graph_ends_its_requests_and_no_other(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(slots: Slots, tokens: Any) -> None:
        raise GraphError("language_model", "a secret of the machine")

    with running(pipeline) as server:
        with monkeypatch.context() as patched:
            patched.setattr(Slots, "step", fails)
            found = server.ask()
        assert found.status_code == 500 and "secret" not in found.text
        assert found.headers["x-request-id"] in found.json()["error"]["message"]
        assert "a secret of the machine" in capsys.readouterr().err
        assert server.ask().status_code == 200


@pytest.mark.parametrize("method", ["advance", "finish"])
def test_an_answer_that_can_t_be_put_into_words_ends_alone(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, method: str, slow: threading.Event
) -> None:
    with running(pipeline, rows=2) as server:
        other: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: other.append(server.ask(**chat(max_tokens=30, min_new_tokens=30))))
        thread.start()
        wait_for(lambda: server.metric("catp_requests_running") == 1, "it runs")
        said = getattr(TextStream, method)

        def fails(stream: TextStream, token_ids: list[int]) -> str:
            if stream._stop_strings:
                raise OverflowError
            return said(stream, token_ids)

        monkeypatch.setattr(TextStream, method, fails)
        found = server.ask(**chat(stop="never", max_tokens=5))
        assert found.status_code == 500 and found.json()["error"]["code"] == "internal_error"
        slow.set()
        thread.join(IN_TIME)
        assert other[0].status_code == 200 and other[0].json()["usage"]["completion_tokens"] == 30
        assert server.engine.in_flight == 0 and server.ask().status_code == 200


def test_what_is_wrong_with_the_command_is_one_line(demo_bundle: Path, tmp_path: Path) -> None:
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    demo = str(demo_bundle)
    for arguments, said in (
        ([], "no bundle"),
        ([str(tmp_path)], "catp.json"),
        (["--model", "x"], "NAME=BUNDLE"),
        (["--model", f"a={demo}", "--model", f"a={demo}"], "named twice"),
        (["--model", f"a b={demo}"], "a name has letters"),
        ([demo, "--prompt-template", "x"], "{text}"),
        ([demo, "--rows", "0"], "--rows"),
        ([demo, "--provider", "abacus", "--port", "0"], "provider 'abacus'"),
        ([demo, "--port", port], "can't listen there"),
        ([demo, "--host", "203.0.113.7", "--port", "0"], "can't listen there"),
        ([demo, "--api-key-file", str(tmp_path / "none"), "--port", "0"], "--api-key-file"),
        ([demo, "--rows", "1024", "--max-length", "16000000", "--port", "0"], "GB"),
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2, (arguments, result.output)
        shown = [line for line in result.output.splitlines() if not line.startswith("{")]
        assert len(shown) == 1 and said in shown[0], (arguments, result.output)
    taken.close()


def test_an_altered_bundle_ends_it_before_it_is_ready(demo_bundle: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))
    weights = copy / "language_model.onnx_data"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    result = CliRunner().invoke(app, [str(copy), "--port", "0"])
    assert result.exit_code == 1 and "was altered" in result.output


# Cache and metrics.


def test_one_vote_serves_every_ratio(pipeline: Pipeline) -> None:
    sample = SAMPLES[1]
    text = sample.prompt.removeprefix("Question: ").removesuffix(" Answer:")
    with running(pipeline) as server:
        for number, ratio in enumerate((0.5, 0.0, 0.75, 0.9)):
            found = server.ask(**chat(text, sample.image, ratio=ratio)).json()
            wanted = pipeline.ask(sample.image, [sample.prompt], ratio=ratio)[0]
            assert found["choices"][0]["message"]["content"] == wanted.answer
            assert found["catp"]["kept_indices"] == wanted.kept_indices
            assert found["catp"]["image_cached"] == (number > 0)
            timings = found["catp"]["timings_ms"]
            assert (timings["vision"] + timings["qformer"] == 0) == (number > 0)
            cached = found["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert cached == (found["catp"]["num_kept"] if number else 0)
        assert server.metric("catp_image_cache_entries") == 1
        assert server.metric("catp_image_cache_bytes") == server.engine.cache.bytes > 0
        other = server.ask(**chat(text, SAMPLES[0].image)).json()
        assert not other["catp"]["image_cached"]
        salted = server.ask(**chat(text, sample.image, cache_salt="mine")).json()
        assert not salted["catp"]["image_cached"]


def test_keys_don_t_share_what_they_sent(pipeline: Pipeline) -> None:
    for keys, shared in ((("a", "b"), False), (("a",), True), ((), True)):
        with running(pipeline, keys=keys) as server:
            found = [
                server.client.post(
                    "/v1/chat/completions", json=chat(), headers={"authorization": f"Bearer {key}"}
                ).json()["catp"]["image_cached"]
                for key in ("a", keys[-1] if keys else "b", "a")
            ]
            assert found == [False, shared, True]


def test_without_a_cache(pipeline: Pipeline) -> None:
    with running(pipeline, cache_bytes=0) as server:
        assert [server.ask().json()["catp"]["image_cached"] for _ in range(2)] == [False, False]


def test_metrics_are_prometheus_s_and_agree_with_what_a_client_counted(pipeline: Pipeline) -> None:
    with running(pipeline, rows=2) as server:
        bodies = [chat(), chat(ratio=0.0), chat(stream=True), chat(max_tokens=1), chat(ratio=5), {"model": "x"}]
        answers = [server.ask(**body) for body in bodies]
        families = {
            family.name: family for family in text_string_to_metric_families(server.client.get("/metrics").text)
        }

        def total(name: str, **labels: str) -> float:
            samples = families[name.removesuffix("_total").removesuffix("_count")].samples
            return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

        assert [answer.status_code for answer in answers] == [200] * 4 + [400] * 2
        assert total("catp_requests_total", route="chat", outcome="ok", model=NAME) == 4
        assert total("catp_requests_total", route="chat", outcome="refused") == 2
        assert total("catp_generated_tokens_total") == 4 + 4 + 4 + 1
        assert total("catp_image_tokens_total", fate="kept") == 16 + 32 + 16 + 16
        assert total("catp_image_tokens_total", fate="dropped") == 16 + 0 + 16 + 16
        assert total("catp_image_cache_requests_total", result="miss") == 1
        assert total("catp_image_cache_requests_total", result="hit") == 3
        assert total("catp_request_seconds_count") == total("catp_time_to_first_token_seconds_count") == 4
        assert total("catp_time_between_tokens_seconds_count") == 3 + 3 + 3 + 0
        assert total("catp_model_ready", model=NAME) == 1 and total("catp_rows") == 2
        assert total("catp_requests_running") == total("catp_requests_waiting") == total("catp_draining") == 0
        for family in families.values():
            buckets = [sample for sample in family.samples if sample.name.endswith("_bucket")]
            for first, second in itertools.pairwise(buckets):  # parsed in order; ends ascend, and so do their counts
                if float(first.labels["le"]) < float(second.labels["le"]):
                    assert first.value <= second.value
            assert family.type != "histogram" or buckets[-1].labels["le"] == "+Inf"


# Other models.


def test_several_models(pipeline: Pipeline, odd_bundle: Path) -> None:
    odd = Pipeline.load(odd_bundle)
    with running({"demo": pipeline, "odd": odd}, rows=2) as server:
        assert [model["id"] for model in server.client.get("/v1/models").json()["data"]] == ["demo", "odd"]
        for name, loaded in (("demo", pipeline), ("odd", odd)):
            wanted = loaded.ask(SAMPLES[0].image, [SAMPLES[0].prompt], max_new_tokens=5)[0].answer
            found = server.ask(**{**chat(max_tokens=5), "model": name}).json()
            assert found["choices"][0]["message"]["content"] == wanted and found["model"] == name


def test_an_encoder_decoder(t5_bundle: Path) -> None:
    t5 = Pipeline.load(t5_bundle)
    with running(t5, rows=2) as server:
        wanted = t5.ask(SAMPLES[0].image, [SAMPLES[0].prompt], max_new_tokens=7)[0]
        answers: list[Any] = []
        threads = [
            threading.Thread(target=lambda: answers.append(server.ask(**chat(max_tokens=7)).json())) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(IN_TIME)
        assert [answer["choices"][0]["message"]["content"] for answer in answers] == [wanted.answer] * 4


def test_votes_that_read_the_question_are_cached_by_it(instructblip_bundle: Path) -> None:
    instructed = Pipeline.load(instructblip_bundle)
    with running(instructed) as server:
        for text, cached in (("what is it?", False), ("where?", False), ("where?", True), ("what is it?", True)):
            wanted = instructed.ask(SAMPLES[0].image, [text], max_new_tokens=6)[0]
            found = server.ask(**chat(text, max_tokens=6)).json()
            assert found["choices"][0]["message"]["content"] == wanted.answer
            assert found["catp"]["kept_indices"] == wanted.kept_indices
            assert found["catp"]["image_cached"] == cached


def test_frames_of_a_video(video_bundle: Path) -> None:
    video = Pipeline.load(video_bundle)
    frames = [SAMPLES[0].image, SAMPLES[1].image, SAMPLES[0].image]
    with running(video) as server:
        body = chat("what?", max_tokens=6)
        content = body["messages"][0]["content"]
        content[:1] = [chat(picture=frame)["messages"][0]["content"][0] for frame in frames]
        found = server.ask(**body).json()
        wanted = video.ask(frames, ["what?"], max_new_tokens=6)[0]
        assert found["choices"][0]["message"]["content"] == wanted.answer
        assert found["catp"]["kept_indices"] == wanted.kept_indices


@pytest.mark.heavy
def test_memory_does_not_grow(demo_bundle: Path) -> None:
    """2,000 requests about other pictures each, a tenth of them refused, a tenth given up."""

    def resident(pid: int) -> int:
        """Kilobytes."""
        (line,) = (x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS:"))
        return int(line.split()[1])

    rng = np.random.default_rng(0)
    pictures = []
    for _ in range(50):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (80, 120, 3), np.uint8)).save(file, "PNG")
        pictures.append(file.getvalue())
    with process(str(demo_bundle), "--cache", "1", "--queue", "64") as (started, address, _):
        wait_for(lambda: httpx.get(f"{address}/health/ready").status_code == 200, "it is ready")
        name = demo_bundle.resolve().name

        def ask(number: int) -> None:
            # After the last chunk of a PNG there may be anything: pictures that differ for the cache alone.
            picture = pictures[number % 50] + number.to_bytes(4, "big")
            body = {**chat(picture=picture, stream=number % 2 == 0, ratio=number % 4 / 4), "model": name}
            if number % 10 == 3:
                body["ratio"] = 2
            with httpx.Client(base_url=address, timeout=IN_TIME) as client:
                with client.stream("POST", "/v1/chat/completions", json=body) as response:
                    if number % 10 != 7:
                        response.read()
                assert response.status_code == (400 if number % 10 == 3 else 200)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(ask, range(300)))
            before = resident(started.pid)
            list(pool.map(ask, range(300, 2000)))
        assert resident(started.pid) <= 1.05 * before
        assert httpx.get(f"{address}/health/ready").status_code == 200
