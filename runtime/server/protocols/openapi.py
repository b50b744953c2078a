"""The published document: what is served, as OpenAPI 3.2 describes it (https://spec.openapis.org/oas/v3.2.0), the first
with events of streams.

It is made from the table of operations and from the very classes that bodies are checked with and answers are written
by; nothing is said in it that is not said there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import TypeAdapter

from catp.runtime.server.failures import speaks_kserve
from catp.runtime.server.protocols.operations import Operation
from catp.runtime.server.shapes import KServeError, OpenAiError

_REFUSALS = {
    400: "The body, a setting or the picture can't be used.",
    401: "No valid key.",
    404: "No such model.",
    408: "The body did not come in time, or no row was free in time.",
    413: "The body or the picture is too large.",
    415: "The body's type is another one.",
    429: "As many requests are under way and wait as may.",
    500: "A graph failed.",
    503: "A model is loading, or the server is stopping.",
    504: "No answer in time.",
}
_OF_QUESTIONS = (400, 404, 408, 413, 415, 429, 500, 504)
"""Statuses of refusals where there is a body."""

_REFERENCE = "#/components/schemas/{model}"


def describe(operations: Sequence[Operation], models: Iterable[str], has_keys: bool, version: str) -> dict[str, Any]:
    """The document.

    Args:
        models: names of those that are served.
        has_keys: operations that need a key ask for one.
        version: of the package.
    """
    used = [
        shape
        for operation in operations
        for shape in (operation.answer, operation.body, operation.stream and operation.stream.event)
        if shape is not None and not isinstance(shape, str)
    ]
    shapes = dict.fromkeys([*used, OpenAiError, KServeError])
    adapters: list[tuple[Any, Any, TypeAdapter[Any]]] = [(shape, "validation", TypeAdapter(shape)) for shape in shapes]
    references, definitions = TypeAdapter.json_schemas(adapters, ref_template=_REFERENCE)
    schemas = {shape: references[shape, "validation"] for shape in shapes}
    schemas[str] = {"type": "string", "enum": list(models)}
    for body in (operation.body for operation in operations if operation.body is not None):
        if "model" in (fields := definitions["$defs"][body.__name__]["properties"]):
            fields["model"] = schemas[str]
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        described = _describe(operation, schemas, has_keys)
        paths.setdefault(operation.plain_path, {})[operation.method.lower()] = described
    security = {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}} if has_keys else {}
    return {
        "openapi": "3.2.0",
        "info": {"title": "catp-serve", "version": version},
        "paths": paths,
        "components": {"schemas": definitions["$defs"], **security},
    }


def _describe(operation: Operation, schemas: dict[Any, Any], has_keys: bool) -> dict[str, Any]:
    names = re.findall(r"\{(\w+)\}", operation.plain_path)
    locked = has_keys and operation.needs_key
    refusals = set(_OF_QUESTIONS) if operation.body is not None else set()
    refusals |= ({404} if names else set()) | ({401} if locked else set())
    refusals |= {503} if operation.needs_key and not operation.while_draining else set()
    refused = schemas[KServeError if speaks_kserve(operation.path) else OpenAiError]
    answers: dict[str, Any] = {str(status): _response(operation, schemas, refused) for status in operation.statuses}
    for status in sorted(refusals):
        schema = refused
        if str(status) in answers:
            schema = {"anyOf": [answers[str(status)]["content"]["application/json"]["schema"], refused]}
        answers[str(status)] = {"description": _REFUSALS[status], "content": {"application/json": {"schema": schema}}}
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "description": "Of a model.", "schema": schemas[str]}
        for name in names
    ]
    parameters.append(
        {"name": "x-request-id", "in": "header", "description": "For the log.", "schema": {"type": "string"}}
    )
    if operation.binary:
        parameters.append(
            {
                "name": "inference-header-content-length",
                "in": "header",
                "description": "Bytes of JSON, which tensors follow.",
                "schema": {"type": "integer", "minimum": 0},
            }
        )
    found: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{operation.method} {operation.plain_path}".lower()).strip("_"),
        "parameters": parameters,
        "responses": answers,
        **({"security": [{"key": []}]} if locked else {}),
    }
    if operation.body is not None:
        kinds: dict[str, Any] = {"application/json": {"schema": schemas[operation.body]}}
        if operation.binary:
            kinds["application/octet-stream"] = {"schema": {}}
        found["requestBody"] = {"required": True, "content": kinds}
    return found


def _response(operation: Operation, schemas: dict[Any, Any], refused: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if isinstance(operation.answer, str):
        content[operation.answer] = {"schema": {"type": "string"}}
    elif operation.answer is not None:
        content["application/json"] = {"schema": schemas[operation.answer]}
    if operation.stream is not None:
        inner = {"anyOf": [schemas[operation.stream.event], refused]}
        data: dict[str, Any] = {"type": "string", "contentMediaType": "application/json", "contentSchema": inner}
        if operation.stream.end is not None:
            data = {"anyOf": [{"const": operation.stream.end}, data]}
        event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"itemSchema": event}
    return {"description": "An answer.", "content": content}
