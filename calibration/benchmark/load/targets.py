"""The servers that a load is sent to: one that runs somewhere, or one that is started for it."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from catp.runtime.errors import CatpError, UsageError

START_SECONDS = 600
"""That a server has for loading its bundle and running every graph once."""

_STOP_SECONDS = 30


@dataclass(frozen=True)
class Target:
    """A server under its name in the report.

    Args:
        url: without /v1.
        model: as requests name it.
        process: of one that was started here.
    """

    name: str
    url: str
    model: str
    key: str | None = None
    process: int | None = None

    def client(self, timeout: float) -> httpx.AsyncClient:
        """Without a bound on connections: how many there are is what the load decides."""
        headers = {} if self.key is None else {"authorization": f"Bearer {self.key}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        # Proxies of the environment would be measured too.
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=timeout, limits=limits, trust_env=False)


def parse_target(text: str) -> tuple[str, str]:
    """Name and URL of NAME=URL or URL, whose name is then its host and port.

    Raises:
        UsageError: it is no URL of http or https.
    """
    name, separator, url = text.partition("=")
    if not separator or "/" in name:
        name, url = "", text
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise UsageError(f"--url {text}: give NAME=URL of a server, such as ours=http://127.0.0.1:8000")
    return name or parts.netloc, url.rstrip("/").removesuffix("/v1")


def find_target(name: str, url: str, model: str | None, key: str | None) -> Target:
    """A running server, and the model that it serves.

    Args:
        model: taken where the server has it, or lists none (LitServe); of a single one that it has, it is that.

    Raises:
        CatpError: nobody answers there.
        UsageError: it serves several models, and none was named, or not that one.
    """
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    try:
        response = httpx.get(f"{url}/v1/models", headers=headers, timeout=30, trust_env=False)
        if response.status_code == 404:
            if model is None:
                raise UsageError(f"--url {url}: this server lists no models; say with --model how requests name it")
            return Target(name, url, model, key)
        response.raise_for_status()
        served = [entry["id"] for entry in response.json()["data"]]
    except httpx.HTTPStatusError as error:
        raise CatpError(f"{url}/v1/models: status {error.response.status_code}; does it want a key?") from None
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise CatpError(f"{url}: no OpenAI-compatible server answers there ({type(error).__name__})") from None
    if len(served) == 1:
        return Target(name, url, served[0], key)
    if model is None or model not in served:
        raise UsageError(f"--model {model or '(none)'}: {url} serves {', '.join(served) or 'none'}; name one of them")
    return Target(name, url, model, key)


@contextmanager
def started(bundle: Path, name: str, options: str) -> Iterator[Target]:
    """`catp-serve` on a bundle, ready to answer; it is stopped afterwards.

    Args:
        options: of `catp-serve`, as on a command line.

    Raises:
        UsageError: they are no command line.
        CatpError: it ended, or was not ready in time.
    """
    try:
        given = shlex.split(options)
    except ValueError as error:
        raise UsageError(f"--serve-options {options}: {error}") from None
    program = "from catp.runtime.commands.serve import app; app()"
    command = [sys.executable, "-c", program, str(bundle), *given, "--host", "127.0.0.1", "--port", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "CATP_API_KEY"}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment)
        try:
            url = _ready(process, log.fileno(), bundle)
            found = find_target(name, url, None, None)
            yield Target(name, url, found.model, process=process.pid)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ready(process: subprocess.Popen[bytes], log: int, bundle: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        ended = process.poll()
        lines = os.pread(log, 1 << 20, 0).decode(errors="replace").splitlines()
        if ended is not None:
            last = next((line for line in reversed(lines) if line and not line.startswith("{")), "it says nothing")
            raise CatpError(f"catp-serve {bundle}: it ended with exit code {ended}: {last.removeprefix('error: ')}")
        url = next((json.loads(line)["url"] for line in lines if '"listening"' in line), None)
        if url is not None:
            try:
                if httpx.get(f"{url}/health/ready", timeout=5, trust_env=False).status_code == 200:
                    return str(url)
            except httpx.HTTPError:
                pass  # the socket is open, and the loop is busy
        time.sleep(0.1)
    raise CatpError(f"catp-serve {bundle}: not ready after {START_SECONDS} seconds")
