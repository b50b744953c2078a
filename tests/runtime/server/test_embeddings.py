"""Embeddings as OpenAI's own client sees them: vectors are those by which catp-match compares."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from servers import IN_TIME, NAME, SAMPLES, Running, data_url, running

from catp.runtime import Pipeline

TEXTS = ["a black diamond", "two dogs on a very green lawn", "a red circle"]


@pytest.fixture(scope="module")
def retrieval(retrieval_bundle: Path) -> Pipeline:
    return Pipeline.load(retrieval_bundle)


@pytest.fixture(scope="module")
def server(retrieval: Pipeline) -> Iterator[Running]:
    with running(retrieval, rows=2) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", timeout=IN_TIME, max_retries=0)


def picture(place: int = 0) -> dict[str, str]:
    return {"image": data_url(SAMPLES[place].image)}


def test_texts_are_embedded_as_matching_does(client: openai.OpenAI, retrieval: Pipeline) -> None:
    tokens = [retrieval.tokenize(text) for text in TEXTS]
    wanted = retrieval.matching.embed(tokens)
    asked = [client.embeddings.create(model=NAME, input=TEXTS)]  # base64, which the client reads
    asked.append(client.embeddings.create(model=NAME, input=TEXTS, encoding_format="float"))
    for found in asked:
        assert [item.index for item in found.data] == [0, 1, 2] and found.model == NAME
        assert np.array_equal(np.array([item.embedding for item in found.data], np.float32), wanted)
        assert found.usage.prompt_tokens == found.usage.total_tokens == sum(map(len, tokens))
    one = client.embeddings.create(model=NAME, input=TEXTS[1]).data
    assert len(one) == 1 and one[0].embedding == pytest.approx(wanted[1].tolist(), abs=1e-6)


@pytest.mark.parametrize("ratio", [None, 0.0, 0.5, 0.9])
def test_a_picture_s_vectors_are_what_matching_compares_with(
    client: openai.OpenAI, retrieval: Pipeline, ratio: float | None
) -> None:
    inputs: Any = [TEXTS[0], picture(0), TEXTS[1], picture(1)]
    extra = {} if ratio is None else {"ratio": ratio}
    found = client.embeddings.create(model=NAME, input=inputs, extra_body=extra)
    vectors = [np.array(item.embedding, np.float32) for item in found.data]
    size = len(vectors[0])
    for text, shown, sample in ((0, 1, 0), (2, 3, 1), (0, 3, 1)):
        kept = vectors[shown].reshape(-1, size)
        assert np.linalg.norm(kept, axis=1) == pytest.approx(np.ones(len(kept)), abs=1e-5)
        wanted = retrieval.match([SAMPLES[sample].image], [inputs[text]], ratio)[0]
        assert (kept @ vectors[text]).max() == pytest.approx(wanted.similarity, abs=1e-6)
        told = found.data[shown].catp  # type: ignore[attr-defined]
        assert told == {"num_kept": len(kept), "kept_indices": wanted.kept_indices}
    tokens = sum(len(retrieval.tokenize(TEXTS[place])) for place in (0, 1))
    assert found.usage.prompt_tokens == tokens + 2 * retrieval.num_kept(ratio)


def test_one_picture_alone_in_either_encoding(server: Running) -> None:
    base = {"model": NAME, "input": picture(2)}
    (plain,) = server.ask("/v1/embeddings", **base).json()["data"]
    (packed,) = server.ask("/v1/embeddings", **base, encoding_format="base64").json()["data"]
    unpacked = np.frombuffer(base64.b64decode(packed["embedding"]), "<f4")
    assert np.array_equal(np.array(plain["embedding"], np.float32), unpacked) and len(unpacked) > 0


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [1, 2]}, "input.0"),
        ({"input": [[1, 2]]}, "input.0"),
        ({"input": ["x"] * 65}, "input"),
        ({"input": "x" * 5000}, "input"),
        ({"input": {"image": "http://x/y.png"}}, "input.0.image"),
        ({"input": ["x", {"image": "data:image/png;base64,aGk="}]}, "image"),
        ({"input": [{"picture": data_url()}]}, "input.0.image"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format"),
        ({"input": "x", "dimensions": 8}, "dimensions"),
        ({"input": picture(), "ratio": 1.5}, "ratio"),
        ({"input": "word " * 800}, None),  # more tokens than the Q-Former has positions
    ],
    ids=str,
)
def test_refusals_name_the_field(server: Running, body: dict[str, Any], param: str | None) -> None:
    found = server.ask("/v1/embeddings", model=NAME, **body)
    assert found.status_code == 400 and found.json()["error"]["param"] == param, found.text


def test_more_pictures_than_may_wait_are_refused(server: Running) -> None:
    found = server.ask("/v1/embeddings", model=NAME, input=[picture()] * 11)  # 2 rows, 8 places
    assert found.status_code == 400 and "give at most 10" in found.text


def test_other_bundles_are_refused_by_name(pipeline: Pipeline) -> None:
    with running(pipeline, rows=1) as server:
        client = openai.OpenAI(base_url=f"{server.address}/v1", api_key="none", max_retries=0)
        with pytest.raises(openai.BadRequestError, match="'demo' answers questions and embeds nothing") as caught:
            client.embeddings.create(model=NAME, input="x")
        assert caught.value.param == "model" and caught.value.code == "unsupported_model"
        with pytest.raises(openai.NotFoundError):
            client.embeddings.create(model="other", input="x")
