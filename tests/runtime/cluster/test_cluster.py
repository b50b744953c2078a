"""Replicas on two raylets, and real clients."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from documents import blocks
from openai import APIStatusError, OpenAI
from PIL import Image, ImageOps
from prometheus_client.parser import text_string_to_metric_families
from raylets import TOKEN, free_port, two_raylets
from servers import IN_TIME, SAMPLES, chat, data_url, wait_for

from catp.runtime import Pipeline
from catp.runtime.cluster import ClusterSettings, app

pytestmark = [
    pytest.mark.heavy,
    # Ray reads when it is imported whether it asks for a token: that has to wait for the fixture.
    pytest.mark.skipif(find_spec("ray") is None, reason="the extra `cluster` is not installed: ray is missing"),
]

KEY = "of-this-test"
MACHINES = ("127.0.0.2", "127.0.0.3")
LONG = 200
"""Tokens of an answer during which something else is to happen: four seconds of slow steps."""
SLOW_STEPS = Path(__file__).parent / "slow_steps"
PAUSE = float(runpy.run_path(str(SLOW_STEPS / "sitecustomize.py"))["PAUSE"])


@dataclass
class Cluster:
    """An application of these settings, where its clients and Ray's find it."""

    address: str
    settings: dict[str, Any]
    gcs: str

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.address, timeout=IN_TIME, headers={"authorization": f"Bearer {KEY}"})

    def deploy(self, replicas: int = 2) -> None:
        """Deployment of the page's file, as by `serve deploy`."""
        from ray import serve
        from ray.serve.context import _get_global_client
        from ray.serve.schema import ServeDeploySchema

        (written,) = blocks("docs/cluster.md", "yaml")
        config = ServeDeploySchema.model_validate(yaml.safe_load(written))
        (application,) = config.applications
        application.args |= self.settings
        next(one for one in application.deployments if one.name == "Model").num_replicas = replicas
        _get_global_client().deploy_apps(config)
        wait_for(lambda: self.healthy() and len(self.replicas()) == replicas, f"{replicas}: {serve.status()}")

    def healthy(self) -> bool:
        from ray import serve

        found = serve.status().applications.values()
        return bool(found) and all(application.status == "RUNNING" for application in found)

    def metric(self, name: str, **labels: str) -> dict[str, float]:
        """The sum of a metric's values by replica."""
        with self.client as client:
            text = client.get("/metrics").raise_for_status().text
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    replica = sample.labels["replica"]
                    found[replica] = found.get(replica, 0) + sample.value
        return found

    def replicas(self) -> list[str]:
        return sorted(self.metric("catp_model_ready"))

    def kill(self, replica: str) -> None:
        import ray

        name = f"SERVE_REPLICA::catp#Model#{replica}"
        ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)


@pytest.fixture(scope="module")
def cluster(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """An application with keys on two raylets that ask each other for a token."""
    logs = tmp_path_factory.mktemp("cluster")
    keys = logs / "keys"
    keys.write_text(KEY)
    http = free_port()
    with two_raylets(MACHINES, logs, SLOW_STEPS) as gcs:
        import ray
        from ray import serve

        ray.init(address=gcs, _node_ip_address=MACHINES[0], log_to_driver=False)
        wait_for(lambda: sum(node["Alive"] for node in ray.nodes()) == len(MACHINES), "a machine is missing")
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": http})
        settings = {
            "bundle": str(demo_bundle),
            "name": "demo",
            "threads": 1,
            "api_key_file": str(keys),
            "cpus": 1,
            "queue": 8,
        }
        found = Cluster(f"http://127.0.0.1:{http}", settings, gcs)
        found.deploy()
        yield found
        serve.shutdown()


def pictures(count: int) -> list[bytes]:
    """The first sample's picture in so many hues."""
    found = []
    for place in range(count):
        picture = Image.open(SAMPLES[0].image).convert("RGB")
        picture = ImageOps.mirror(picture) if place % 2 else picture
        picture.putpixel((0, 0), (place, 255 - place, 7))
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        found.append(buffer.getvalue())
    return found


def long(picture: bytes, **fields: Any) -> dict[str, Any]:
    return chat("where is it?", picture, max_tokens=LONG, min_new_tokens=LONG, **fields)


def expected(pipeline: Pipeline, asked: list[bytes]) -> list[str]:
    opened = [Image.open(io.BytesIO(picture)) for picture in asked]
    prompts = ["Question: where is it? Answer:"] * len(asked)
    answers = pipeline.generate(opened, prompts, max_new_tokens=LONG, min_new_tokens=LONG)
    return [answer.answer for answer in answers]


def content(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_both_machines_have_a_replica(cluster: Cluster) -> None:
    import ray
    from ray._private.state import actors

    nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    found = [one for one in actors().values() if one["State"] == "ALIVE" and "#Model#" in one["Name"]]
    assert sorted(nodes[one["Address"]["NodeID"]] for one in found) == sorted(MACHINES)


def test_answers_are_those_of_the_pipeline(cluster: Cluster, pipeline: Pipeline) -> None:
    client = OpenAI(base_url=f"{cluster.address}/v1", api_key=KEY, max_retries=0, timeout=IN_TIME)
    assert [model.id for model in client.models.list()] == ["demo"]
    for sample in SAMPLES:
        for ratio in (0.25, 0.75):
            prompt = f"Question: {sample.question} Answer:" if "Question:" not in sample.question else sample.question
            (wanted,) = pipeline.generate([sample.image], [prompt], ratio=ratio)
            question = prompt.removeprefix("Question: ").removesuffix(" Answer:")
            parts: Any = [
                {"type": "image_url", "image_url": {"url": data_url(sample.image)}},
                {"type": "text", "text": question},
            ]
            messages: Any = [{"role": "user", "content": parts}]
            whole = client.chat.completions.create(model="demo", messages=messages, extra_body={"ratio": ratio})
            assert whole.choices[0].message.content == wanted.answer
            assert whole.model_extra is not None and whole.model_extra["catp"]["kept_indices"] == wanted.kept_indices
            stream = client.chat.completions.create(
                model="demo", messages=messages, stream=True, extra_body={"ratio": ratio}
            )
            assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted.answer


def test_an_answer_lasts_as_long_as_slow_steps_make_it(cluster: Cluster) -> None:
    """What the tests below do during an answer relies on it."""
    with cluster.client as client:
        began = time.monotonic()
        content(client.post("/v1/chat/completions", json=long(pictures(1)[0])))
    assert time.monotonic() - began >= (LONG - 1) * PAUSE


def test_keys_and_limits_hold(cluster: Cluster) -> None:
    with httpx.Client(base_url=cluster.address, timeout=IN_TIME) as nobody:
        assert nobody.get("/health/ready").json() == {"status": "ready", "models": {"demo": "ready"}}
        assert nobody.get("/health/live").status_code == 200
        for path in ("/metrics", "/v1/models", "/v2/models/demo"):
            assert nobody.get(path).status_code == 401
        assert nobody.post("/v1/chat/completions", json=chat()).status_code == 401
    with cluster.client as client:
        response = client.post("/v1/chat/completions", json=chat(), headers={"x-request-id": "mine"})
        assert response.headers.get_list("x-request-id") == ["mine"]
        assert response.json()["id"] == "chatcmpl-mine"
        large = client.post("/v1/chat/completions", json=chat(picture=bytes(16 << 20)))
        assert large.status_code == 413 and large.json()["error"]["code"] == "body_too_large"
        refused = client.post("/v1/chat/completions", json=chat(n=2))
        assert refused.status_code == 400 and refused.json()["error"]["param"] == "n"
        assert client.get("/nowhere").status_code == 404
        assert client.post("/v1/chat/completions", content="a", headers={"content-type": "text/plain"}).is_error
    with pytest.raises(APIStatusError) as raised:
        OpenAI(base_url=f"{cluster.address}/v1", api_key="other", max_retries=0).models.list()
    assert raised.value.status_code == 401


def test_ray_itself_asks_for_its_token(cluster: Cluster) -> None:
    code = f"from ray._raylet import GcsClient; GcsClient(address={cluster.gcs!r}); print('let in')"
    for mode, token, admitted in (("token", TOKEN, True), ("token", "f" * 64, False), ("disabled", "", False)):
        given = {**os.environ, "RAY_AUTH_MODE": mode, "RAY_AUTH_TOKEN": token}
        result = subprocess.run(
            [sys.executable, "-c", code], env=given, capture_output=True, text=True, timeout=IN_TIME
        )
        assert ("let in" in result.stdout) == admitted, result.stderr
        assert admitted or "AuthenticationError" in result.stderr


def test_a_picture_meets_the_replica_that_knows_it(cluster: Cluster) -> None:
    hits, misses = (cluster.metric("catp_image_cache_requests_total", result=result) for result in ("hit", "miss"))
    asked, questions = pictures(24), ("what is it?", "where is it?", "what is above?", "is it red?", "how many?")
    with cluster.client as client, ThreadPoolExecutor(4) as pool:
        for question in questions:
            bodies = [chat(question, picture, max_tokens=4) for picture in asked]
            for response in pool.map(lambda body: client.post("/v1/chat/completions", json=body), bodies):
                content(response)
    found = cluster.metric("catp_image_cache_requests_total", result="hit")
    repeated = len(asked) * (len(questions) - 1)
    assert sum(found.values()) - sum(hits.values()) >= 0.9 * repeated
    encoded = cluster.metric("catp_image_cache_requests_total", result="miss")
    shares = [encoded[replica] - misses.get(replica, 0) for replica in cluster.replicas()]
    assert min(shares) >= 1, f"one replica has all pictures: {shares}"


def test_a_stream_that_nobody_reads_is_cancelled(cluster: Cluster) -> None:
    with (
        cluster.client as client,
        client.stream("POST", "/v1/chat/completions", json=long(pictures(1)[0], stream=True)) as response,
    ):
        assert next(response.iter_lines()).startswith("data: ")
    wait_for(lambda: sum(cluster.metric("catp_cancellations_total").values()) >= 1, "it goes on")
    wait_for(lambda: not sum(cluster.metric("catp_requests_running").values()), "it has a row still")


def test_more_than_all_replicas_take_is_refused(cluster: Cluster) -> None:
    """Clients ask on until one is refused: how fast they come together depends on the machine."""
    limits = httpx.Limits(max_connections=80)
    auth = {"authorization": f"Bearer {KEY}"}
    until, refused = time.monotonic() + IN_TIME, threading.Event()
    responses: list[httpx.Response] = []

    def ask_until_refused(client: httpx.Client, body: dict[str, Any]) -> None:
        while not refused.is_set() and time.monotonic() < until:
            responses.append(client.post("/v1/chat/completions", json=body))
            if responses[-1].status_code != 200:
                refused.set()

    with (
        httpx.Client(base_url=cluster.address, timeout=IN_TIME, headers=auth, limits=limits) as client,
        ThreadPoolExecutor(80) as pool,
    ):
        asked = [pool.submit(ask_until_refused, client, long(picture)) for picture in pictures(8) * 10]
    for one in asked:
        one.result()
    statuses = [response.status_code for response in responses]
    assert set(statuses) == {200, 429} and statuses.count(200) >= 16, statuses
    for response in responses:
        if response.status_code == 429:
            assert int(response.headers["retry-after"]) >= 1 and response.json()["error"]["code"] == "queue_full"


def ask_on(cluster: Cluster, asked: list[bytes], stop: threading.Event) -> tuple[list[str], list[int]]:
    """Answers to questions about the pictures in turn until told to stop, at least one each; and statuses."""
    answers, statuses = [], []
    with cluster.client as client:
        for place, picture in enumerate(asked * 1000):
            if stop.is_set() and place >= len(asked):
                break
            response = client.post("/v1/chat/completions", json=long(picture))
            statuses.append(response.status_code)
            answers.append(content(response) if response.status_code == 200 else response.text)
    return answers, statuses


def test_a_replica_that_is_killed_takes_no_answer_with_it(cluster: Cluster, pipeline: Pipeline) -> None:
    asked = pictures(6)
    wanted = expected(pipeline, asked)
    stop = threading.Event()
    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(ask_on, cluster, asked[place:] + asked[:place], stop) for place in range(len(asked))]
        try:
            victim = _busiest(cluster)
            cluster.kill(victim)
            wait_for(lambda: victim not in cluster.replicas() and len(cluster.replicas()) == 2, "it is not replaced")
        finally:
            stop.set()
        results = [client.result() for client in clients]
    for place, (answers, statuses) in enumerate(results):
        assert set(statuses) == {200}, answers
        turn = wanted[place:] + wanted[:place]
        assert answers == [turn[number % len(turn)] for number in range(len(answers))]


def _busiest(cluster: Cluster) -> str:
    """A replica in the midst of an answer."""
    found: list[str] = []

    def busy() -> bool:
        running = cluster.metric("catp_requests_running")
        found[:] = [replica for replica in running if running[replica] >= 1]
        return bool(found)

    wait_for(busy, "no replica has anything to do")
    return found[0]


def test_a_stream_whose_replica_is_killed_says_so(cluster: Cluster) -> None:
    with streaming(cluster, pictures(6)) as ends:
        victim = _busiest(cluster)
        cluster.kill(victim)
        wait_for(lambda: victim not in cluster.replicas() and len(cluster.replicas()) == 2, "it is not replaced")
    assert any('"code":"no_replica"' in end for end in ends)
    assert all(end == "data: [DONE]" or '"code":"no_replica"' in end for end in ends)


def test_streams_end_while_their_replica_is_stopped(cluster: Cluster) -> None:
    """And what the replica that stays knew, it still knows."""
    asked = pictures(12)
    cluster.deploy(replicas=2)
    before = set(cluster.replicas())
    with streaming(cluster, asked) as ends:
        wait_for(lambda: sum(map(bool, cluster.metric("catp_requests_running").values())) == 2, "one has no stream")
        cluster.deploy(replicas=1)
    assert len(ends) > len(asked) and set(ends) == {"data: [DONE]"}
    (stays,) = cluster.replicas()
    assert stays in before
    cluster.deploy(replicas=2)
    with cluster.client as client:
        again = [client.post("/v1/chat/completions", json=chat(picture=picture)).json() for picture in asked]
    known = cluster.metric("catp_image_cache_entries")[stays]
    assert known >= len(asked) and any(answer["catp"]["image_cached"] for answer in again)


@contextlib.contextmanager
def streaming(cluster: Cluster, asked: list[bytes]) -> Iterator[list[str]]:
    """Streams about each picture, one after another, as long as the block lasts; the last line of each, after it."""
    stop, ends = threading.Event(), []

    def stream(picture: bytes) -> None:
        with cluster.client as client:
            while not stop.is_set():
                with client.stream("POST", "/v1/chat/completions", json=long(picture, stream=True)) as response:
                    assert response.status_code == 200, response.read()
                    ends.append([line for line in response.iter_lines() if line][-1])

    with ThreadPoolExecutor(len(asked)) as pool:
        streams = [pool.submit(stream, picture) for picture in asked]
        try:
            yield ends
        finally:
            stop.set()
    for one in streams:
        one.result()


def test_a_model_whose_thread_dies_ends_its_process(demo_bundle: Path) -> None:
    """Of which Ray's supervision makes another; here it is a process of its own, without Ray around it."""
    code = f"""
import time
from catp.runtime.cluster.replica import Replica
from catp.runtime.cluster.settings import ClusterSettings
replica = Replica(ClusterSettings(bundle={str(demo_bundle)!r}, threads=1))
replica.check_health()
replica._engine._turn = None
time.sleep({IN_TIME})
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=IN_TIME)
    assert result.returncode == 1 and '"event": "model_ended"' in result.stderr, result.stderr


def test_a_bundle_that_is_missing_is_no_application(cluster: Cluster, tmp_path: Path) -> None:
    from ray import serve

    settings = ClusterSettings(bundle=str(tmp_path / "none"), ingresses=1, replicas=1)
    began = time.monotonic()
    with pytest.raises(RuntimeError):
        serve.run(app(settings), name="broken", route_prefix="/broken")
    said = serve.status().applications["broken"].deployments["Model"].message
    serve.delete("broken")
    assert "none" in said and time.monotonic() - began < IN_TIME
