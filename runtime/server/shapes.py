"""Shapes of answers: what is sent is checked against them by mypy, and the published document is made from them."""

from __future__ import annotations

from typing import (
    Literal,
    NotRequired,  # pydantic reads no other before Python 3.12
)

from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict


@with_config(ConfigDict(extra="forbid"))
class Shape(TypedDict):
    """An object without other fields than those named."""


class Ready(Shape):
    """Whether the server and each of its models are ready."""

    status: Literal["ready", "not ready", "draining"]
    models: dict[str, Literal["ready", "not ready"]]


class Live(Shape):
    """A sign of life."""

    status: Literal["live"]


class Version(Shape):
    """The version of the package."""

    version: str


class Attention(Shape):
    """Where query tokens look: of each patch, row by row, the mean share of it."""

    rows: int
    columns: int
    kept: list[float]
    dropped: list[float] | None


class Explanation(Shape):
    """The vote behind an answer."""

    scores: list[float]
    attention: NotRequired[Attention]


class Account(Shape):
    """Facts about an answer that other servers do not have."""

    num_kept: int
    kept_indices: list[int]
    image_cached: bool
    timings_ms: dict[str, float]
    explanation: NotRequired[Explanation]


class OpenAiProblem(Shape):
    """The reason of a refusal; param is the field that is to blame."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAiError(Shape):
    """A refusal."""

    error: OpenAiProblem


class KServeError(Shape):
    """A refusal."""

    error: str


class ModelFacts(Shape):
    """Facts about a model that is ready."""

    source: str
    family: str
    precision: str
    method: str
    ratio: float
    keep_mass: float | None
    num_query_tokens: int
    max_length: int


class Model(Shape):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    catp: NotRequired[ModelFacts]


class ModelList(Shape):
    """All models that are served."""

    object: Literal["list"]
    data: list[Model]


class PromptDetails(Shape):
    """Tokens of a prompt, those of its image among them."""

    image_tokens: int
    cached_tokens: int


class Usage(Shape):
    """Tokens that were read and written; of the image, those that were kept."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class ChatMessage(Shape):
    """An answer's text."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Shape):
    """The one answer."""

    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: None


class ChatCompletion(Shape):
    """An answer."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    catp: Account


class ChatDelta(Shape):
    """A part of an answer's text."""

    role: NotRequired[Literal["assistant"]]
    content: NotRequired[str]


class ChunkChoice(Shape):
    """The one answer, in parts."""

    index: int
    delta: ChatDelta
    finish_reason: str | None
    logprobs: None


class ChatChunk(Shape):
    """An event of a stream."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: NotRequired[Usage | None]
    catp: NotRequired[Account]


class Kept(Shape):
    """The kept tokens of a picture: image tokens, or query tokens, whose vectors follow one another."""

    num_kept: int
    kept_indices: list[int]


class Embedding(Shape):
    """A text's vector, or a picture's vectors; in base64, of float32, the lowest byte first."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    catp: NotRequired[Kept]


class EmbeddingUsage(Shape):
    """Tokens that were read; of pictures, those that were kept."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Shape):
    """Embeddings, in the order of what was given."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class ServerMetadata(Shape):
    """The server."""

    name: str
    version: str
    extensions: list[str]


class TensorMetadata(Shape):
    """A tensor that a model takes or gives."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(Shape):
    """A model's tensors."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]


class ModelReady(Shape):
    """Whether a model is ready."""

    name: str
    ready: bool


class OutputTensor(TensorMetadata):
    """A tensor that a model gave."""

    data: list[str] | list[int] | list[float]


class Inferred(Shape):
    """Tensors that a model gave."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    outputs: list[OutputTensor]


class Generated(Shape):
    """An answer, or a part of one; the last part says why it ends."""

    model_name: str
    model_version: str
    id: NotRequired[str]
    text_output: str
    finish_reason: NotRequired[str]
    catp: NotRequired[Account]
