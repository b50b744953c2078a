"""Every question about a picture has one name, whatever the route; other pictures have others."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from servers import SAMPLES, chat

from catp.runtime.cluster.affinity import picture_name

FIRST, SECOND = (sample.image.read_bytes() for sample in SAMPLES[:2])


def encoded(picture: bytes) -> str:
    return base64.b64encode(picture).decode()


def name(body: Any) -> str:
    return picture_name(json.dumps(body).encode())


def infer(*pictures: bytes, binary: bool, text: str = "a") -> tuple[bytes, str | None]:
    """KServe's request, pictures in JSON or behind it."""
    prompts = {"name": "prompt", "shape": [len(pictures)], "datatype": "BYTES"}
    images = {"name": "image", "shape": [len(pictures)], "datatype": "BYTES"}
    if not binary:
        inputs = [
            {**prompts, "data": [text] * len(pictures)},
            {**images, "data": [[encoded(picture)] for picture in pictures]},
        ]
        return json.dumps({"inputs": inputs}).encode(), None
    tensors = [
        b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        for parts in ([text.encode()] * len(pictures), pictures)
    ]
    inputs = [
        {**head, "parameters": {"binary_data_size": len(tensor)}} for head, tensor in zip((prompts, images), tensors)
    ]
    head = json.dumps({"inputs": inputs}).encode()
    return head + b"".join(tensors), str(len(head))


def test_questions_about_a_picture_share_its_name() -> None:
    names = {
        name(chat("what is in the bottom right?", FIRST)),
        name(chat("where is the circle?", FIRST, stream=True, ratio=0.25)),
        name({"image": encoded(FIRST), "text_input": "a"}),
        name({"image": [f"data:image/webp;base64,{encoded(FIRST)}"], "text_input": "b"}),
        picture_name(*infer(FIRST, binary=False)),
        picture_name(*infer(FIRST, binary=False, text="b")),
    }
    assert len(names) == 1
    assert picture_name(*infer(FIRST, binary=True)) == picture_name(*infer(FIRST, binary=True, text="other"))


@pytest.mark.parametrize("binary", [False, True])
def test_pictures_have_names_of_their_own(binary: bool) -> None:
    names = [
        picture_name(*infer(*pictures, binary=binary))
        for pictures in ((FIRST,), (SECOND,), (FIRST, SECOND), (SECOND, FIRST))
    ]
    assert len(set(names)) == 4
    assert name(chat(picture=FIRST)) != name(chat(picture=SECOND))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff\xfe",
        b"3",
        b'{"messages": [3, {"content": [null, {"image_url": [1]}]}], "inputs": [4, {"parameters": 1, "data": {}}]}',
        b'{"image": {"a": 1}, "inputs": [{"name": "image", "parameters": {"binary_data_size": -1}}]}',
        b'{"image": "\\ud800"}',
    ],
)
def test_a_body_without_a_picture_has_a_name_all_the_same(body: bytes) -> None:
    assert len(picture_name(body)) == len(picture_name(body, "3")) == len(picture_name(body, "x")) == 64
    assert picture_name(body) != picture_name(body + b" {")
