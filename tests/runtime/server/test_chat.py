"""Chat completions as OpenAI's own client sees them: answers are those of the pipeline, refusals are typed errors."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from servers import IN_TIME, NAME, SAMPLES, Running, chat, data_url, running

from catp.runtime import Pipeline

WANTED = "a black diamond"


@pytest.fixture(scope="module")
def server(pipeline: Pipeline) -> Iterator[Running]:
    with running(pipeline, rows=4) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=IN_TIME, max_retries=0)


def test_an_answer_is_the_pipeline_s(client: openai.OpenAI, pipeline: Pipeline) -> None:
    for sample in SAMPLES[:3]:
        text = sample.prompt.removeprefix("Question: ").removesuffix(" Answer:")
        for ratio in (0.0, 0.5, 0.75):
            wanted = pipeline.ask(sample.image, [sample.prompt], ratio=ratio)[0]
            found = client.chat.completions.create(**chat(text, sample.image), extra_body={"ratio": ratio})
            assert found.choices[0].message.content == wanted.answer
            assert found.choices[0].finish_reason == "stop"
            assert found.usage is not None and found.usage.completion_tokens == len(wanted.token_ids)
            assert found.usage.prompt_tokens == wanted.num_kept + len(pipeline.tokenize(sample.prompt))
            assert found.catp["kept_indices"] == wanted.kept_indices  # type: ignore[attr-defined]


def test_a_stream_says_the_same_and_how_it_ended(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(**chat(), stream=True, stream_options={"include_usage": True}))
    *told, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == WANTED
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * (len(told) - 1) + ["stop"]
    assert told[0].choices[0].delta.role == "assistant" and len({chunk.id for chunk in chunks}) == 1
    assert not usage.choices and usage.usage is not None and usage.usage.completion_tokens == 4
    assert all(chunk.usage is None for chunk in told)


def test_a_stream_in_bytes(server: Running) -> None:
    with server.client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        text = response.read().decode()
    events = text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") and "\n" not in event for event in events[:-2])


def test_async(server: Running) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=IN_TIME) as client:
            found = await asyncio.gather(*(client.chat.completions.create(**chat()) for _ in range(6)))
            return [answer.choices[0].message.content for answer in found]

    assert asyncio.run(ask()) == [WANTED] * 6


def test_a_limit_ends_an_answer_by_its_length(client: openai.OpenAI, server: Running) -> None:
    found = client.chat.completions.create(**chat(max_completion_tokens=2))
    assert found.choices[0].finish_reason == "length" and found.usage.completion_tokens == 2  # type: ignore[union-attr]


def test_settings_have_openai_s_names_and_ours(server: Running, pipeline: Pipeline) -> None:
    sample = SAMPLES[0]
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"temperature": 0, "seed": 5, "top_p": 1}, {}),
        ({"temperature": 2.5, "seed": 5}, {"do_sample": True, "temperature": 2.5, "seed": 5}),
        ({"top_p": 0.8, "seed": 1, "top_k": 9}, {"do_sample": True, "top_p": 0.8, "seed": 1, "top_k": 9}),
        ({"stop": ["dia"]}, {"stop_strings": ["dia"]}),
        ({"stop": " dia", "temperature": 0.0}, {"stop_strings": " dia"}),
        ({"repetition_penalty": 1.5, "min_new_tokens": 6}, {"repetition_penalty": 1.5, "min_new_tokens": 6}),
        ({"keep_mass": 0.5}, {"keep_mass": 0.5}),
        ({"ratio": 0.9, "positions": "compact"}, {"ratio": 0.9, "positions": "compact"}),
    ]
    for fields, settings in cases:
        wanted = pipeline.ask(sample.image, [sample.prompt], max_new_tokens=12, **settings)[0]
        found = server.ask(**chat(max_tokens=12, **fields)).json()
        assert found["choices"][0]["message"]["content"] == wanted.answer, fields
        assert found["catp"]["num_kept"] == wanted.num_kept


def test_a_conversation_is_read_as_vllm_s_template_makes_it(server: Running, pipeline: Pipeline) -> None:
    picture = {"type": "image_url", "image_url": {"url": data_url()}}
    messages = [
        {"role": "user", "content": [picture, {"type": "text", "text": "what is in the center?"}]},
        {"role": "assistant", "content": "a red circle"},
        {"role": "user", "content": "and in the bottom right?"},
    ]
    prompt = "Question: what is in the center? Answer: a red circle Question: and in the bottom right? Answer:"
    wanted = pipeline.ask(SAMPLES[0].image, [prompt], max_new_tokens=5)[0]
    found = server.ask(model=NAME, messages=messages, max_tokens=5).json()
    assert found["choices"][0]["message"]["content"] == wanted.answer
    assert found["usage"]["prompt_tokens"] == wanted.num_kept + len(pipeline.tokenize(prompt))
    caption = pipeline.ask(SAMPLES[0].image, [""])[0].answer
    assert server.ask(**chat("")).json()["choices"][0]["message"]["content"] == caption


def test_another_template(pipeline: Pipeline) -> None:
    with running(pipeline, prompt_template="{text}") as server:
        wanted = pipeline.ask(SAMPLES[0].image, ["a picture of"], max_new_tokens=6)[0].answer
        found = server.ask(**chat("a picture of", max_tokens=6)).json()
        assert found["choices"][0]["message"]["content"] == wanted


def with_parts(*parts: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(parts)}]}


TEXT = {"type": "text", "text": "what?"}
PICTURE = {"type": "image_url", "image_url": {"url": data_url()}}

REFUSED: list[tuple[dict[str, Any], type[openai.APIStatusError], str | None, str]] = [
    ({"model": "other"}, openai.NotFoundError, "model", "'other' is not served here; served: demo"),
    ({"n": 2}, openai.BadRequestError, "n", "should be 1"),
    ({"tools": [{"type": "function"}]}, openai.BadRequestError, "tools", "at most 0"),
    ({"logprobs": True}, openai.BadRequestError, "logprobs", "False"),
    ({"response_format": {"type": "json_object"}}, openai.BadRequestError, "response_format.type", "'text'"),
    ({"logit_bias": {"5": 1}}, openai.BadRequestError, "logit_bias", "not supported"),
    ({"max_tokens": 0}, openai.BadRequestError, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 100_000}, openai.BadRequestError, "max_tokens", "at most 257 together"),
    ({"temperature": -1}, openai.BadRequestError, "temperature", "greater than 0"),
    ({"temperature": "hot"}, openai.BadRequestError, "temperature", "valid number"),
    ({"ratio": 1.0}, openai.BadRequestError, "ratio", "0 <= ratio < 1"),
    ({"ratio": 0.5, "keep_mass": 0.5}, openai.BadRequestError, "ratio", "give one of them"),
    ({"positions": "far"}, openai.BadRequestError, "positions", "'original' or 'compact'"),
    ({"num_beams": 4}, openai.BadRequestError, "num_beams", "one beam"),
    ({"stop": [""]}, openai.BadRequestError, "stop.0", "at least 1 character"),
    ({"messages": []}, openai.BadRequestError, "messages", "at least 1"),
    ({"messages": [{"role": "system", "content": "x"}]}, openai.BadRequestError, "messages.0.role", "'user'"),
    ({"messages": [{"role": "user", "content": "what?"}]}, openai.BadRequestError, "messages", "no picture"),
    (with_parts(PICTURE, PICTURE, TEXT), openai.BadRequestError, "messages", "2 pictures: this model sees one"),
    (with_parts(TEXT, {"type": "input_audio"}), openai.BadRequestError, "messages.0.content.1", "'image_url', 'text'"),
    (with_parts({**TEXT, "text": 5}), openai.BadRequestError, "messages.0.content.0.text", "valid string"),
    (
        with_parts(PICTURE, {"type": "text", "text": "x" * 5000}),
        openai.BadRequestError,
        "messages.0.content.1.text",
        "4096",
    ),
    (with_parts(PICTURE, {"type": "text", "text": "x y " * 1000}), openai.BadRequestError, "messages", "at most"),
]


@pytest.mark.parametrize(("fields", "error", "param", "said"), REFUSED, ids=lambda value: str(value)[:30])
def test_refusals_name_the_field(
    client: openai.OpenAI, fields: dict[str, Any], error: type[openai.APIStatusError], param: str | None, said: str
) -> None:
    with pytest.raises(error) as caught:
        client.chat.completions.create(model=NAME, messages=chat()["messages"], extra_body=fields)
    assert caught.value.param == param, caught.value.body
    assert said in caught.value.message and "\n" not in caught.value.body["message"]  # type: ignore[index]
    assert caught.value.request_id


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"model": NaN}', "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b"{}", "text/plain", 415),
        (b"a=b", "multipart/form-data; boundary=x", 415),
        (b"", "application/json", 400),
    ],
)
def test_bodies_that_are_none(server: Running, content: bytes, kind: str, status: int) -> None:
    response = server.client.post("/v1/chat/completions", content=content, headers={"content-type": kind})
    assert response.status_code == status and set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_special_tokens_are_text(server: Running, pipeline: Pipeline) -> None:
    """What a client types never becomes a special token: it is read as letters, or refused by name."""
    found = server.ask(**chat("<image></s> what is in the center?"))
    if found.status_code == 200:
        prompt = "Question: <image></s> what is in the center? Answer:"
        assert pipeline.manifest.text.image_token_id not in pipeline.tokenize(prompt)
        assert found.json()["usage"]["prompt_tokens"] == 16 + len(pipeline.tokenize(prompt))
    else:
        assert "special token" in found.json()["error"]["message"]


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == NAME and model.object == "model"
    assert model.catp["num_query_tokens"] == 32 and model.catp["max_length"] == 256  # type: ignore[attr-defined]
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_curl(server: Running) -> None:
    command = [
        "curl",
        "-s",
        f"{server.address}/v1/chat/completions",
        "-H",
        "content-type: application/json",
        "-d",
        "@-",
    ]
    found = subprocess.run(
        command, input=json.dumps(chat()), capture_output=True, text=True, check=True, timeout=IN_TIME
    )
    assert json.loads(found.stdout)["choices"][0]["message"]["content"] == WANTED


def test_many_clients_at_once_share_steps(server: Running) -> None:
    steps, rows = server.metric("catp_decode_steps_total"), server.metric("catp_step_rows_total")
    answers: list[str] = []

    def ask() -> None:
        found = server.ask(**chat(max_tokens=24, min_new_tokens=24))
        answers.append(found.json()["choices"][0]["message"]["content"])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(IN_TIME)
    assert len(answers) == 8 and len(set(answers)) == 1
    shared = (server.metric("catp_step_rows_total") - rows) / (server.metric("catp_decode_steps_total") - steps)
    assert server.metric("catp_step_rows_total") - rows == 8 * 23 and shared > 1.2
