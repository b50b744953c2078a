"""Settings of a server: what it listens on, and what it lets clients do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from catp.runtime import limits
from catp.runtime.errors import UsageError

KEY_VARIABLE = "CATP_API_KEY"
"""Of the environment: a key, where no file of keys is given."""


@dataclass(frozen=True)
class ServerSettings:
    """Everything but the bundles."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0: any that is free
    rows: int = limits.SERVED_ROWS  # of each model
    length: int = limits.SERVED_LENGTH  # tokens of a row
    queue: int | None = None  # requests that wait for a row; None: QUEUED_PER_ROW for each
    admissions_per_step: int = 1  # prompts read between two steps of those under way
    cache_bytes: int = limits.CACHE_BYTES
    queue_seconds: float = limits.QUEUE_SECONDS
    request_seconds: float = limits.REQUEST_SECONDS
    drain_seconds: float = limits.DRAIN_SECONDS
    read_seconds: float = limits.READ_SECONDS
    body_bytes: int = limits.BODY_BYTES
    waiting_bytes: int = limits.WAITING_BYTES
    keys: tuple[str, ...] = ()  # one of which a client has to send; none: anybody is served
    media_domains: tuple[str, ...] = ()  # hosts that pictures are fetched from; none: nothing is fetched
    prompt_template: str | None = None  # in place of the family's; has {text}
    page: bool = True
    traces: str | None = None  # a URL that takes OTLP; None: nothing is traced

    @property
    def waiting(self) -> int:
        """Requests that wait for a row of a model, at most."""
        return limits.QUEUED_PER_ROW * self.rows if self.queue is None else self.queue


def read_keys(path: Path | None) -> tuple[str, ...]:
    """API keys of a file, one a line, or of the environment; empty where neither is given.

    Raises:
        UsageError: the file can't be read or holds none, or a key is no text that a header could hold.
    """
    if path is None:
        given = os.environ.get(KEY_VARIABLE)
        lines, source = ([given] if given is not None else []), f"environment variable {KEY_VARIABLE}"
    else:
        source = f"--api-key-file {path}"
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{source}: can't be read ({getattr(error, 'strerror', None) or 'no text'})") from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if (path is not None or lines) and not keys:
        raise UsageError(f"{source}: it holds no key; give one a line")
    if any(not (key.isascii() and key.isprintable()) or " " in key for key in keys):
        raise UsageError(f"{source}: a key has characters that a header can't hold; give printable ASCII, no spaces")
    return keys
