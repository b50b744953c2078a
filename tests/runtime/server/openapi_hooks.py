"""Hooks of schemathesis: bodies that it made up, about a real picture, and every other one with few settings.

Without them hardly a body is answered: nobody makes up base64 of a PNG, or twenty settings that go together.
"""

import json
import os
import zlib
from typing import Any

import schemathesis
from servers import data_url

REQUIRED = {"id", "model", "messages", "text_input", "image", "inputs", "stream", "input"}


def with_pictures(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        if value.get("name") == "image":
            return {"name": "image", "shape": [1], "datatype": "BYTES", "data": [data_url()]}
        return {name: with_pictures(inner, name) for name, inner in value.items()}
    if isinstance(value, list) and key != "image":
        return [with_pictures(inner, key) for inner in value]
    return data_url() if key in ("url", "image") else value


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    if not isinstance(body, dict):
        return body
    mark = zlib.crc32(json.dumps(body, sort_keys=True, default=str).encode())
    if mark % 2:
        others = sorted(body.keys() - REQUIRED)
        kept = REQUIRED | ({others[mark // 2 % len(others)]} if others else set())
        body = {name: value for name, value in body.items() if name in kept}
        if "inputs" in body:
            body["inputs"] = [
                {"name": "image"},
                {"name": os.environ["TEXT_TENSOR"], "shape": [1], "datatype": "BYTES", "data": ["what?"]},
            ]
    return with_pictures(body)
