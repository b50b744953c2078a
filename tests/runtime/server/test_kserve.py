"""KServe's v2 protocol: metadata, inference on tensors in JSON and in binary, generate and its stream."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import NAME, SAMPLES, Running, data_url, running

from catp.runtime import Pipeline

MODEL = f"/v2/models/{NAME}"


@pytest.fixture(scope="module")
def server(pipeline: Pipeline) -> Iterator[Running]:
    with running(pipeline, rows=3) as found:
        yield found


def tensor(name: str, *data: str, shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "shape": shape or [len(data)], "datatype": "BYTES", "data": list(data)}


def outputs(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    return {output["name"]: output["data"] for output in response.json()["outputs"]}


def test_metadata_and_health(server: Running) -> None:
    assert server.client.get("/v2").json()["name"] == "catp-serve"
    for path in ("/v2/health/live", "/v2/health/ready", f"{MODEL}/ready", f"{MODEL}/versions/1/ready"):
        assert server.client.get(path).status_code == 200
    for path in (MODEL, f"{MODEL}/versions/1"):
        found = server.client.get(path).json()
        assert found["name"] == NAME and [tensor["name"] for tensor in found["inputs"]] == ["image", "prompt"]
        assert all(set(tensor) == {"name", "datatype", "shape"} for tensor in found["inputs"] + found["outputs"])
    for path in ("/v2/models/other", "/v2/models/other/ready"):
        assert server.client.get(path).status_code == 404


def test_infer_answers_several_questions(server: Running, pipeline: Pipeline) -> None:
    asked = SAMPLES[:3]
    body = {
        "id": "7",
        "inputs": [
            tensor("image", *(data_url(sample.image) for sample in asked)),
            tensor("prompt", *(sample.prompt for sample in asked), shape=[3, 1]),
        ],
        "parameters": {"ratio": 0.75, "max_new_tokens": 6},
        "outputs": [{"name": "text"}, {"name": "num_kept"}],
    }
    response = server.client.post(f"{MODEL}/infer", json=body)
    wanted = pipeline.generate(
        [sample.image for sample in asked], [sample.prompt for sample in asked], 0.75, max_new_tokens=6
    )
    assert outputs(response) == {"text": [answer.answer for answer in wanted], "num_kept": [8, 8, 8]}
    assert response.json()["id"] == "7" and response.json()["model_name"] == NAME


def test_binary_inputs(server: Running) -> None:
    """As Triton's client sends them: four bytes of length before each element, all tensors after the JSON."""

    def packed(*elements: bytes) -> bytes:
        return b"".join(len(element).to_bytes(4, "little") + element for element in elements)

    parts = {"image": packed(SAMPLES[0].image.read_bytes()), "prompt": packed(SAMPLES[0].prompt.encode())}
    inputs = [
        {"name": name, "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(part)}}
        for name, part in parts.items()
    ]
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    headers = {"inference-header-content-length": str(len(head)), "content-type": "application/octet-stream"}
    content = head + b"".join(parts.values())
    del headers["content-type"]  # Triton's client has none
    found = outputs(server.client.post(f"{MODEL}/infer", content=content, headers=headers))
    assert server.client.post(f"{MODEL}/infer", content=content).status_code == 415  # a page of another site could
    assert found == {"text": ["a black diamond"], "num_kept": [16], "finish_reason": ["stop"]}
    for wrong in (content[:-1], content + b"x", content[: len(head) + 2] + b"\xff" + content[len(head) + 3 :]):
        assert server.client.post(f"{MODEL}/infer", content=wrong, headers=headers).status_code == 400
    for length in ("x", "-1", "99999999", "1"):
        wrong_headers = {**headers, "inference-header-content-length": length}
        assert server.client.post(f"{MODEL}/infer", content=content, headers=wrong_headers).status_code == 400


IMAGE, PROMPT = tensor("image", data_url()), tensor("prompt", "what?")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"inputs": [IMAGE]}, "at least 2"),
        ({"inputs": [IMAGE, IMAGE]}, "takes image and prompt"),
        ({"inputs": [IMAGE, tensor("text", "x")]}, "takes image and prompt"),
        ({"inputs": [IMAGE, {**PROMPT, "datatype": "FP32"}]}, "datatype"),
        ({"inputs": [IMAGE, {**PROMPT, "shape": [2]}]}, "1 elements of shape [2]"),
        ({"inputs": [IMAGE, tensor("prompt", "a", "b")]}, "1 images and 2 of prompt"),
        ({"inputs": [tensor("image", "@"), PROMPT]}, "no base64"),
        ({"inputs": [tensor("image", "http://x/y"), PROMPT]}, "no base64"),
        ({"inputs": [IMAGE, {**PROMPT, "data": [5]}]}, "are strings"),
        ({"inputs": [IMAGE, PROMPT], "outputs": [{"name": "logits"}]}, "'logits' is none of text"),
        ({"inputs": [IMAGE, PROMPT], "parameters": {"beams": 2}}, "parameters.beams"),
        ({"inputs": [IMAGE, PROMPT], "parameters": {"ratio": 2}}, "0 <= ratio < 1"),
        ({"inputs": [tensor("image", *[data_url()] * 16), tensor("prompt", *["x"] * 16)]}, "give at most 15"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refusals(server: Running, body: dict[str, Any], said: str) -> None:
    found = server.client.post(f"{MODEL}/infer", json=body)
    assert found.status_code == 400 and said in found.json()["error"]


def test_generate_and_its_stream(server: Running, pipeline: Pipeline) -> None:
    sample = SAMPLES[1]
    wanted = pipeline.ask(sample.image, [sample.prompt], ratio=0.25, max_new_tokens=9, repetition_penalty=1.2)[0]
    plain = base64.b64encode(sample.image.read_bytes()).decode()
    for image in (plain, data_url(sample.image), [plain]):
        body = {
            "text_input": sample.prompt,
            "image": image,
            "parameters": {"ratio": 0.25, "max_tokens": 9, "repetition_penalty": 1.2},
        }
        found = server.client.post(f"{MODEL}/generate", json=body).json()
        assert found["text_output"] == wanted.answer and found["catp"]["num_kept"] == wanted.num_kept
        text = server.client.post(f"{MODEL}/generate_stream", json=body).text
        events = [json.loads(event.removeprefix("data: ")) for event in text.strip().split("\n\n")]
        assert "".join(event["text_output"] for event in events) == wanted.answer
        assert [event.get("finish_reason") for event in events][-1] == "stop"
    assert server.client.post(f"{MODEL}/generate", json={"text_input": "x"}).json()["error"].startswith("image: ")


def test_texts_are_scored_against_a_picture(retrieval_bundle: Path) -> None:
    retrieval = Pipeline.load(retrieval_bundle)
    texts = ["a black diamond", "two dogs", "a red circle"]
    with running(retrieval) as server:
        assert server.client.get(MODEL).json()["inputs"][1]["name"] == "text"
        for ratio in (0.0, 0.5):
            wanted = retrieval.match([SAMPLES[0].image] * 3, texts, ratio)
            body = {"inputs": [tensor("image", data_url()), tensor("text", *texts)], "parameters": {"ratio": ratio}}
            found = outputs(server.client.post(f"{MODEL}/infer", json=body))
            assert found["probability"] == pytest.approx([match.probability for match in wanted], abs=1e-5)
            assert found["similarity"] == pytest.approx([match.similarity for match in wanted], abs=1e-5)
        refused = server.ask()
        assert refused.status_code == 400 and "use /v2/models/demo/infer" in refused.json()["error"]["message"]
        assert server.client.get("/v1/models").json()["data"][0]["catp"]["family"].startswith("BLIP-2")
