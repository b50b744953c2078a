"""Readers of requests: one for the body of each route on which questions are asked."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from starlette.requests import Request

from catp.runtime.bundle.manifest import Manifest
from catp.runtime.questions import Wishes
from catp.runtime.server.failures import Failure
from catp.runtime.server.http.asking import Maker, Reading
from catp.runtime.server.http.state import State
from catp.runtime.server.model.engine import ModelEngine
from catp.runtime.server.model.jobs import Embedded, End, Finished
from catp.runtime.server.protocols import kserve
from catp.runtime.server.protocols.dialects import Dialect, KServeGenerate, OpenAiChat
from catp.runtime.server.protocols.embeddings import write_embeddings
from catp.runtime.server.reading.bodies import ChatBody, EmbeddingsBody, GenerateBody, GenerateParameters, parse
from catp.runtime.server.reading.intake import make_embed_job, make_job, make_match_job
from catp.runtime.server.reading.pictures import read_url
from catp.runtime.server.reading.questions import Asked, read_chat, read_pictures, read_wishes


def read_chat_request(state: State, request: Request, body: bytes) -> Reading:
    """POST /v1/chat/completions."""
    asked = parse(ChatBody, body)
    engine = state.engine(asked.model)
    manifest = _generating(engine)
    question = read_chat(asked, manifest, state.settings.prompt_template, state.settings.media_domains)
    tokens = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
    wishes = read_wishes(asked, asked.stop, tokens, manifest.generation)
    if asked.explain and manifest.vote is None:
        raise Failure(
            400, f"explain: model {engine.name!r} has no votes to explain; leave it out", "unsupported", "explain"
        )
    include_usage = asked.stream_options is not None and asked.stream_options.include_usage
    dialect = OpenAiChat(_id(request), engine.name, include_usage)
    maker = _maker(state, request, engine, question, wishes, asked.cache_salt, bool(asked.explain))
    return Reading(engine, [maker], _whole(dialect), dialect if asked.stream else None)


def read_generate_request(state: State, request: Request, body: bytes) -> Reading:
    """POST /v2/models/NAME/generate and generate_stream."""
    asked = parse(GenerateBody, body)
    engine = state.engine(request.path_params["name"], None)
    manifest = _generating(engine)
    pictures = read_pictures(asked.image, manifest, "image", state.settings.media_domains)
    question = Asked(asked.text_input, pictures, "image")
    wishes = _wishes(asked.parameters, manifest)
    dialect = KServeGenerate(engine.name, asked.id)
    maker = _maker(state, request, engine, question, wishes, asked.parameters.cache_salt)
    stream = request.url.path.endswith("_stream")
    return Reading(engine, [maker], _whole(dialect), dialect if stream else None)


def read_infer_request(state: State, request: Request, body: bytes) -> Reading:
    """POST /v2/models/NAME/infer."""
    engine = state.engine(request.path_params["name"], None)
    manifest = engine.pipeline.manifest
    header_length = request.headers.get("inference-header-content-length")
    asked, pictures, texts = kserve.read_infer(body, header_length, manifest)
    whole = partial(kserve.infer_response, engine.name, asked)
    began, given = time.monotonic(), asked.parameters
    if not manifest.writes_text:
        make = partial(make_match_job, engine, pictures[0], texts, given.ratio, _id(request))
        return Reading(engine, [lambda tell: make(tell, began)], whole)
    wishes = _wishes(given, manifest)
    makers = [
        _maker(state, request, engine, Asked(text, [picture], "inputs"), wishes, given.cache_salt)
        for picture, text in zip(pictures, texts)
    ]
    return Reading(engine, makers, whole)


def read_embeddings_request(state: State, request: Request, body: bytes) -> Reading:
    """POST /v1/embeddings: the texts are one job, and each picture is one."""
    asked = parse(EmbeddingsBody, body)
    engine = state.engine(asked.model)
    if engine.pipeline.manifest.writes_text:
        message = f"model {engine.name!r} answers questions and embeds nothing; only bundles of retrieval models do"
        raise Failure(400, message, "unsupported_model", "model")
    inputs = asked.input if isinstance(asked.input, list) else [asked.input]
    texts = [given for given in inputs if isinstance(given, str)]
    domains = state.settings.media_domains
    pictures = [
        read_url(given.image, f"input.{place}.image", domains)
        for place, given in enumerate(inputs)
        if not isinstance(given, str)
    ]
    began = time.monotonic()
    text_tokens = [engine.pipeline.tokenize(text) for text in texts]
    makers: list[Maker] = []
    if texts:
        makers.append(lambda tell: make_embed_job(engine, text_tokens, None, asked.ratio, _id(request), tell, began))
    for picture in pictures:
        makers.append(
            lambda tell, picture=picture: make_embed_job(  # type: ignore[misc]
                engine, (), picture, asked.ratio, _id(request), tell, began
            )
        )

    def whole(ends: Sequence[End]) -> Mapping[str, object]:
        found = [end for end in ends if isinstance(end, Embedded)]
        of_texts = iter(found[0].vectors if texts else ())
        of_pictures = iter(found[1:] if texts else found)
        return write_embeddings(
            engine.name,
            [next(of_texts) if isinstance(given, str) else next(of_pictures) for given in inputs],
            sum(map(len, text_tokens)),
            asked.encoding_format,
        )

    return Reading(engine, makers, whole)


def _whole(dialect: Dialect) -> Callable[[Sequence[End]], Mapping[str, object]]:
    def whole(ends: Sequence[End]) -> Mapping[str, object]:
        (end,) = ends
        assert isinstance(end, Finished)
        return dialect.whole(end)

    return whole


def _id(request: Request) -> str:
    return str(request.scope["catp"]["request_id"])


def _generating(engine: ModelEngine) -> Manifest:
    """The manifest of a model that writes text; raises Failure for one that does not."""
    manifest = engine.pipeline.manifest
    if not manifest.writes_text:
        message = f"model {engine.name!r} scores texts and writes none; use /v2/models/{engine.name}/infer"
        raise Failure(400, message, "unsupported_model", "model")
    return manifest


def _wishes(given: GenerateParameters, manifest: Manifest) -> Wishes:
    tokens = given.max_new_tokens if given.max_tokens is None else given.max_tokens
    return read_wishes(given, given.stop, tokens, manifest.generation)


def _maker(
    state: State,
    request: Request,
    engine: ModelEngine,
    question: Asked,
    wishes: Wishes,
    salt: str | None,
    explains: bool = False,
) -> Maker:
    began, salted = time.monotonic(), salt_of(state, request, salt)
    return lambda tell: make_job(engine, question, wishes, salted, _id(request), tell, began, explains)


def salt_of(state: State, request: Request, given: str | None) -> bytes:
    """A mark of those who may see each other's pictures in the time that an answer takes: the key, where there are
    several; and the salt that the client asks for."""
    key = request.headers.get("authorization", "") if len(state.settings.keys) > 1 else ""
    return hashlib.sha256(key.encode() + b"\0" + (given or "").encode()).digest()
