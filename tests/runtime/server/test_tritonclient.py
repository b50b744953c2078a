"""NVIDIA's own client of the v2 protocol, without a word of special treatment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as triton
from servers import NAME, SAMPLES, Running, running
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from catp.runtime import Pipeline


@pytest.fixture(scope="module")
def server(pipeline: Pipeline) -> Iterator[Running]:
    with running(pipeline, rows=3) as found:
        yield found


@pytest.fixture
def client(server: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.address.removeprefix("http://")) as found:
        yield found


def tensor(name: str, values: list[bytes], binary: bool = True) -> triton.InferInput:
    array = np.array(values, np.object_)
    found = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    found.set_data_from_numpy(array, binary_data=binary)
    return found


def test_health_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(NAME)
    assert not client.is_model_ready("other")
    assert client.get_server_metadata()["name"] == "catp-serve"
    metadata = client.get_model_metadata(NAME)
    assert [(one["name"], one["datatype"]) for one in metadata["inputs"]] == [("image", "BYTES"), ("prompt", "BYTES")]


@pytest.mark.parametrize("binary", [True, False])
def test_answers_to_pictures_as_bytes(
    client: triton.InferenceServerClient, pipeline: Pipeline, tmp_path: Path, binary: bool
) -> None:
    """With outputs as the client asks for them: in binary, or as JSON."""
    asked = SAMPLES[:2]
    inputs = [
        tensor("image", [sample.image.read_bytes() for sample in asked]),
        tensor("prompt", [sample.prompt.encode() for sample in asked]),
    ]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("text", "num_kept")]
    found = client.infer(NAME, inputs, outputs=outputs, request_id="7", parameters={"ratio": 0.75})
    wanted = pipeline.generate([sample.image for sample in asked], [sample.prompt for sample in asked], 0.75)
    texts = [text.decode() if isinstance(text, bytes) else text for text in found.as_numpy("text").ravel()]
    assert texts == [answer.answer for answer in wanted]
    assert found.as_numpy("num_kept").ravel().tolist() == [8, 8]
    assert found.get_response()["id"] == "7"


def test_what_is_refused_is_its_exception(client: triton.InferenceServerClient) -> None:
    inputs = [tensor("image", [b"no picture"]), tensor("prompt", [b"what?"])]
    with pytest.raises(InferenceServerException, match="image"):
        client.infer(NAME, inputs)
    with pytest.raises(InferenceServerException, match="'other' is not served here; served: demo"):
        client.infer("other", inputs)
