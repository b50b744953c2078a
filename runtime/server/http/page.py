"""The page: one file, sent from memory, that may load and run nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response

_CONTENT = Path(__file__).with_name("page.html").read_bytes()


def _hash_of(tag: str) -> str:
    """The one element of that name, as a content security policy admits it."""
    (inner,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), _CONTENT, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(inner).digest()).decode()}'"


POLICY = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_hash_of('script')}",
        f"style-src {_hash_of('style')}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
"""Of content: https://developer.mozilla.org/docs/Web/HTTP/CSP."""


async def page(request: Request) -> Response:
    """GET /."""
    headers = {"content-security-policy": POLICY, "referrer-policy": "no-referrer", "cache-control": "no-cache"}
    return Response(_CONTENT, media_type="text/html; charset=utf-8", headers=headers)
