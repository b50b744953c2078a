"""Bodies that nobody would send: each is answered or refused by its field, and none is an internal error."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from servers import NAME, SAMPLES, Running, chat, data_url, running, wait_for

from catp.runtime import Pipeline

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["\ud800", "\0", "</s>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
TENSOR = {"shape": [1], "datatype": "BYTES"}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat(
        temperature=1, top_p=0.9, seed=1, stop=["x"], max_tokens=2, n=1, stream=False, stream_options={},
        ratio=0.5, positions="compact", top_k=5, repetition_penalty=1.1, no_repeat_ngram_size=2, explain=True,
    ),
    f"/v2/models/{NAME}/generate": {
        "text_input": "what?", "image": data_url(), "id": "x",
        "parameters": {"ratio": 0.5, "max_tokens": 2, "keep_mass": None, "min_new_tokens": 1},
    },
    f"/v2/models/{NAME}/infer": {
        "inputs": [
            {"name": "image", "data": [data_url()], **TENSOR}, {"name": "prompt", "data": [SAMPLES[0].prompt], **TENSOR}
        ],
        "parameters": {"max_new_tokens": 2}, "outputs": [{"name": "text"}],
    },
}  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in inner:
        yield from places(child, (*path, key))


@pytest.fixture(scope="module")
def server(pipeline: Pipeline) -> Iterator[Running]:
    with running(pipeline, rows=2) as found:
        yield found


@pytest.mark.parametrize("path", BODIES)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
@given(data=st.data())
def test_a_body_with_something_else_in_it(server: Running, path: str, data: st.DataObject) -> None:
    body = copy.deepcopy(BODIES[path])
    *outer, last = data.draw(st.sampled_from([place for place in places(body) if place]))
    target: Any = body
    for key in outer:
        target = target[key]
    change = data.draw(st.sampled_from(["replace", "remove", "add"]))
    if change == "remove":
        del target[last]
    elif change == "add" and isinstance(target, dict):
        target[data.draw(st.text(max_size=9))] = data.draw(JSON)
    else:
        target[last] = data.draw(JSON)
    content = json.dumps(body).encode()
    found = server.client.post(path, content=content, headers={"content-type": "application/json"})
    assert found.status_code in (200, 400, 404, 413), (found.status_code, found.text, body)
    assert found.status_code == 200 or found.json()["error"]


def test_it_is_none_the_worse_for_it(server: Running) -> None:
    assert server.ask().json()["choices"][0]["message"]["content"] == "a black diamond"
    gate = server.serving.state.gate
    wait_for(lambda: gate.requests == server.engine.in_flight == gate.bytes == 0, "all are forgotten")
