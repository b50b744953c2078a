"""KServe's v2 protocol, as Triton and OVMS speak it: metadata, and inference on tensors.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, and its binary extension for inputs.
A bundle that generates takes BYTES tensors "image" and "prompt" of B elements each; one that scores texts takes one
"image" and B of "text".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from catp.runtime.bundle.manifest import Manifest
from catp.runtime.limits import BODY_BYTES, IMAGE_BYTES, SERVED_PROMPT_CHARACTERS
from catp.runtime.server.failures import Failure
from catp.runtime.server.model.jobs import End, Finished, Matched
from catp.runtime.server.reading.bodies import EXAMPLE_PICTURE, GenerateParameters, Strict, parse
from catp.runtime.server.reading.pictures import decode_base64, read_url
from catp.runtime.server.shapes import Inferred, ModelMetadata, OutputTensor, ServerMetadata

EXTENSIONS = ("generate", "binary_tensor_data")

_MOST_ELEMENTS = 64
"""Questions, or texts, of one request."""


class Tensor(Strict):
    """An input."""

    name: Literal["image", "prompt", "text"]
    shape: Annotated[list[Annotated[int, Field(ge=0, le=_MOST_ELEMENTS)]], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    parameters: dict[str, Any] = Field(default={})
    data: list[Any] | None = None


class Output(Strict):
    """An output that is asked for."""

    name: str
    parameters: dict[str, Any] = Field(default={})


class InferParameters(GenerateParameters):
    """Parameters of a request."""

    binary_data_output: bool | None = None  # what Triton's client asks for; data may come as JSON all the same


_EXAMPLE = [
    {"name": "image", "shape": [1], "datatype": "BYTES", "data": [EXAMPLE_PICTURE]},
    {"name": "prompt", "shape": [1], "datatype": "BYTES", "data": ["Question: what is in the picture? Answer:"]},
]


class InferBody(Strict):
    """POST /v2/models/NAME/infer."""

    id: Annotated[str, Field(max_length=256)] | None = None
    parameters: InferParameters = InferParameters()
    inputs: Annotated[list[Tensor], Field(min_length=2, max_length=2, examples=[_EXAMPLE])]
    outputs: list[Output] | None = None


def read_infer(body: bytes, header_length: str | None, manifest: Manifest) -> tuple[InferBody, list[bytes], list[str]]:
    """A request, its encoded pictures and its prompts or texts.

    Args:
        header_length: the header inference-header-content-length: the bytes of JSON, which those of tensors follow.

    Raises:
        Failure: something is missing, unknown or out of range.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and len(header_length) < 10):
            raise Failure(400, "inference-header-content-length: no number", "invalid_value")
        length = int(header_length)
        if length > len(body):
            raise Failure(400, "inference-header-content-length: more than the body has", "invalid_value")
    asked = parse(InferBody, body[:length])
    known = [tensor["name"] for tensor in describe_model("", manifest)["outputs"]]
    for output in asked.outputs or ():
        if output.name not in known:
            message = f"outputs: {output.name[:100]!r} is none of {', '.join(known)}"
            raise Failure(400, message, "invalid_value", "outputs")
    rest = memoryview(body)[length:]
    text_name = "prompt" if manifest.writes_text else "text"
    found: dict[str, list[bytes]] = {}
    for place, tensor in enumerate(asked.inputs):
        size = tensor.parameters.get("binary_data_size")
        where = f"inputs.{place}"
        if size is None:
            found[tensor.name] = _from_json(tensor, where)
        else:
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= min(len(rest), BODY_BYTES):
                raise Failure(400, f"{where}: binary_data_size is not what follows", "invalid_value", where)
            found[tensor.name], rest = _from_binary(rest[:size], where), rest[size:]
        count = 1
        for extent in tensor.shape:
            count *= extent
        if count != len(found[tensor.name]) or not count:
            message = f"{where}: {len(found[tensor.name])} elements of shape {tensor.shape}"
            raise Failure(400, message, "invalid_value", f"{where}.shape")
    if len(rest):
        raise Failure(400, f"body: {len(rest)} bytes that no input has", "invalid_value")
    if set(found) != {"image", text_name}:
        raise Failure(400, f"inputs: this model takes image and {text_name}", "invalid_value", "inputs")
    pictures, texts = found["image"], [_text(element, text_name) for element in found[text_name]]
    if text_name == "prompt" and len(pictures) != len(texts):
        raise Failure(400, f"inputs: {len(pictures)} images and {len(texts)} of {text_name}", "invalid_value", "inputs")
    if text_name == "text" and len(pictures) != 1:
        raise Failure(
            400, f"inputs: {len(pictures)} images; give one, and any number of texts", "invalid_value", "inputs"
        )
    return asked, pictures, texts


def _from_json(tensor: Tensor, where: str) -> list[bytes]:
    data: list[Any] = tensor.data if tensor.data is not None else []
    flat = [element for part in data for element in (part if isinstance(part, list) else [part])]
    if not all(isinstance(element, str) for element in flat):
        raise Failure(400, f"{where}.data: BYTES in JSON are strings", "invalid_value", f"{where}.data")
    if tensor.name != "image":
        return [element.encode("utf-8", "surrogatepass") for element in flat]
    return [
        read_url(element, f"{where}.data") if element.startswith("data:") else decode_base64(element, f"{where}.data")
        for element in flat
    ]


def _from_binary(content: memoryview, where: str) -> list[bytes]:
    """Elements, each after its length in four bytes, the lowest first."""
    found = []
    while len(content):
        size = int.from_bytes(content[:4], "little")
        if len(content) < 4 or size > len(content) - 4:
            raise Failure(400, f"{where}: an element is longer than its tensor", "invalid_value", where)
        if size > IMAGE_BYTES:
            raise Failure(413, f"{where}: an element of more than {IMAGE_BYTES:,} bytes", "image_too_large", where)
        found.append(bytes(content[4 : 4 + size]))
        content = content[4 + size :]
    return found


def _text(element: bytes, name: str) -> str:
    try:
        text = element.decode()
    except UnicodeDecodeError:
        raise Failure(400, f"{name}: no UTF-8", "invalid_value", "inputs") from None
    if len(text) > SERVED_PROMPT_CHARACTERS:
        raise Failure(400, f"{name}: more than {SERVED_PROMPT_CHARACTERS:,} characters", "invalid_value", "inputs")
    return text


def describe_server(version: str) -> ServerMetadata:
    return {"name": "catp-serve", "version": version, "extensions": list(EXTENSIONS)}


def describe_model(name: str, manifest: Manifest) -> ModelMetadata:
    """Metadata of a model."""
    scores = not manifest.writes_text
    inputs = [("image", "BYTES"), ("text" if scores else "prompt", "BYTES")]
    outputs = (
        [*([] if manifest.logit_scale else [("probability", "FP32")]), ("similarity", "FP32")]
        if scores
        else [("text", "BYTES"), ("num_kept", "INT64"), ("finish_reason", "BYTES")]
    )
    return {
        "name": name,
        "versions": ["1"],
        "platform": "catp",
        "inputs": [{"name": tensor, "datatype": kind, "shape": [-1]} for tensor, kind in inputs],
        "outputs": [{"name": tensor, "datatype": kind, "shape": [-1]} for tensor, kind in outputs],
    }


def infer_response(name: str, asked: InferBody, ends: Sequence[End]) -> Inferred:
    """The response to `infer`, data in JSON."""
    tensors: dict[str, tuple[str, list[Any]]] = {}
    first = ends[0]
    if isinstance(first, Matched):
        if first.probability:
            tensors["probability"] = ("FP32", first.probability)
        tensors["similarity"] = ("FP32", first.similarity)
    else:
        finished = [end for end in ends if isinstance(end, Finished)]
        tensors["text"] = ("BYTES", [end.answer.answer for end in finished])
        tensors["num_kept"] = ("INT64", [end.answer.num_kept for end in finished])
        tensors["finish_reason"] = ("BYTES", [end.reason for end in finished])
    outputs: list[OutputTensor] = []
    for output in [output.name for output in asked.outputs] if asked.outputs else tensors:
        kind, data = tensors[output]
        outputs.append({"name": output, "datatype": kind, "shape": [len(data)], "data": data})
    found: Inferred = {"model_name": name, "model_version": "1", "outputs": outputs}
    if asked.id is not None:
        found["id"] = asked.id
    return found
