"""Bodies of requests, read and checked: JSON of a known shape, or a failure that names the field."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError

from catp.runtime.limits import FRAMES, SERVED_EMBEDDINGS, SERVED_PROMPT_CHARACTERS, SERVED_STOP_STRINGS, SERVED_TURNS
from catp.runtime.server.failures import Failure

Model = TypeVar("Model", bound=BaseModel)

Prompt = Annotated[str, Field(max_length=SERVED_PROMPT_CHARACTERS, examples=["what is in the picture?"])]
EXAMPLE_PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFUlEQVR42mPUiDrBgA0wMeAAg1MCAAWzAVqiKYDVAAAA"
    "AElFTkSuQmCC"
)
Picture = Annotated[str, Field(examples=[EXAMPLE_PICTURE])]
_Stop = Annotated[str, Field(min_length=1, max_length=SERVED_PROMPT_CHARACTERS)]

_one_or_many = Discriminator(lambda value: "(many)" if isinstance(value, list | tuple) else "(one)")
"""So that an error names the place in the kind that was given."""

Stop = Annotated[
    Annotated[_Stop, Tag("(one)")] | Annotated[list[_Stop], Field(max_length=SERVED_STOP_STRINGS), Tag("(many)")],
    _one_or_many,
]
Pictures = Annotated[
    Annotated[Picture, Tag("(one)")] | Annotated[list[Picture], Field(min_length=1, max_length=FRAMES), Tag("(many)")],
    _one_or_many,
]


class Strict(BaseModel):
    """No field is ignored: one that is unknown might have changed the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Choice(Strict):
    """Settings of an answer, by the names that `GenerationSettings` and `Pipeline.generate` have."""

    ratio: float | None = None
    keep_mass: float | None = None
    positions: Literal["original", "compact"] | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    min_new_tokens: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] | None = None


class ImageUrl(Strict):
    """A picture."""

    url: Picture
    detail: Literal["auto", "low", "high"] | None = None  # this model sees every picture at one size


class ImagePart(Strict):
    """A picture of a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Strict):
    """A text of a message."""

    type: Literal["text"]
    text: Prompt


Part = Annotated[ImagePart | TextPart, Field(discriminator="type")]


Content = Annotated[
    Annotated[Prompt, Tag("(text)")] | Annotated[list[Part], Field(max_length=FRAMES + 16), Tag("(parts)")],
    Discriminator(lambda content: "(parts)" if isinstance(content, list | tuple) else "(text)"),
]


class Message(Strict):
    """A turn of a conversation."""

    role: Literal["user", "assistant"]
    content: Content
    name: str | None = None


class StreamOptions(Strict):
    """Options of a stream."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ResponseFormat(Strict):
    """The only format that there is."""

    type: Literal["text"]


class ChatBody(Choice):
    """POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[Message], Field(min_length=1, max_length=SERVED_TURNS)]
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    explain: bool | None = None  # the votes come with the answer
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None

    # Accepted where they ask for what happens anyway.
    n: Literal[1] | None = None
    logprobs: Literal[False] | None = None
    response_format: ResponseFormat | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none"] | None = None
    store: Literal[False] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    safety_identifier: str | None = None


class PictureInput(Strict):
    """A picture to embed."""

    image: Picture


EmbeddingInput = Annotated[
    Annotated[Prompt, Tag("(text)")] | Annotated[PictureInput, Tag("(picture)")],
    Discriminator(lambda given: "(text)" if isinstance(given, str) else "(picture)"),
]


class EmbeddingsBody(Strict):
    """POST /v1/embeddings."""

    model: str
    input: Annotated[
        Annotated[EmbeddingInput, Tag("(one)")]
        | Annotated[list[EmbeddingInput], Field(min_length=1, max_length=SERVED_EMBEDDINGS), Tag("(many)")],
        _one_or_many,
    ]
    encoding_format: Literal["float", "base64"] = "float"
    ratio: float | None = None  # of pictures
    user: str | None = None


class GenerateParameters(Choice):
    """Parameters of KServe's generate."""

    max_new_tokens: int | None = Field(default=None, ge=1)
    max_tokens: int | None = Field(default=None, ge=1)  # as others name it
    stop: Stop | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class GenerateBody(Strict):
    """POST /v2/models/NAME/generate and generate_stream."""

    id: Annotated[str, Field(max_length=256)] | None = None
    text_input: Prompt
    image: Pictures  # data URLs or base64
    parameters: GenerateParameters = GenerateParameters()


def parse(model: type[Model], body: bytes) -> Model:
    """The body as JSON of this shape.

    Raises:
        Failure: it is no JSON, or a field is missing, unknown or out of range.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _failure(error) from None


def _failure(error: ValidationError) -> Failure:
    first = error.errors(include_input=False, include_url=False)[0]
    where = _name(first["loc"])
    if first["type"] == "json_invalid":
        return Failure(400, f"body: no JSON ({first['ctx']['error']})"[:200], "invalid_json")
    if first["type"] == "extra_forbidden":
        return Failure(400, f"{where}: unknown, or not supported here; leave it out", "unsupported_parameter", where)
    message = f"{where}: {first['msg']}" if where else f"body: {first['msg']}"
    return Failure(400, message[:500], "invalid_value", where or None)


def _name(where: tuple[int | str, ...]) -> str:
    """The field as a client writes it: messages.0.content.1.image_url.url."""
    names = []
    for place, name in enumerate(where):
        kind = place > 1 and where[place - 2] == "(parts)"  # of a part, whose type stands behind its number
        if not kind and not str(name).startswith("("):
            names.append(str(name))
    return ".".join(names)
