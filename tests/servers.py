"""Servers for tests: in this process, on a port of their own, or as a user starts them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from catp.export.demo import samples
from catp.runtime import Pipeline
from catp.runtime.server.serving import Serving
from catp.runtime.server.settings import ServerSettings

SAMPLES = samples()
NAME = "demo"
IN_TIME = 60.0
"""Seconds that anything may take on a busy machine before a test gives up."""


def data_url(picture: Path | bytes = SAMPLES[0].image) -> str:
    content = picture if isinstance(picture, bytes) else picture.read_bytes()
    return "data:image/png;base64," + base64.b64encode(content).decode()


def chat(
    text: str = "what is in the bottom right?", picture: Path | bytes = SAMPLES[0].image, **fields: Any
) -> dict[str, Any]:
    """The body of a question about a picture."""
    content = [{"type": "image_url", "image_url": {"url": data_url(picture)}}, {"type": "text", "text": text}]
    return {"model": NAME, "messages": [{"role": "user", "content": content}], **fields}


class Running:
    """A server in this process, once it is ready."""

    def __init__(self, serving: Serving, address: str) -> None:
        self.serving = serving
        self.address = address
        self.engine = next(iter(serving.engines.values()))
        self.client = httpx.Client(base_url=address, timeout=IN_TIME)

    def ask(self, path: str = "/v1/chat/completions", **body: Any) -> httpx.Response:
        return self.client.post(path, json=body or chat())

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's values with these labels."""
        found = 0.0
        for line in self.client.get("/metrics").text.splitlines():
            matched = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
            if matched and all(f'{key}="{value}"' in (matched[1] or "") for key, value in labels.items()):
                found += float(matched[2])
        return found


def wait_for(holds: Callable[[], object], what: str) -> None:
    """Wait until it holds; an assertion fails where it never does."""
    until = time.monotonic() + IN_TIME
    while not holds():
        assert time.monotonic() < until, what
        time.sleep(0.01)


@contextlib.contextmanager
def running(models: Pipeline | Mapping[str, Pipeline], wait: bool = True, **settings: Any) -> Iterator[Running]:
    """A server of loaded models, in a thread of this process."""
    named = {NAME: models} if isinstance(models, Pipeline) else models
    found: list[str] = []
    left: list[int] = []
    serving = Serving(
        {name: lambda pipeline=pipeline: pipeline for name, pipeline in named.items()},  # type: ignore[misc]
        ServerSettings(port=0, **settings),
        listening=found.append,
        leave=left.append,  # it would end the tests' process without a word
    )
    errors: list[BaseException] = []

    def run() -> None:
        try:
            serving.run()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        wait_for(lambda: found and (serving.state.ready or not wait), "the server is not ready")
        server = Running(serving, found[0])
        with server.client:
            yield server
    finally:
        serving.told(1)
        thread.join(IN_TIME)
        assert not thread.is_alive() and not left, "a graph still runs after the server's end"
    if errors:
        raise errors[0]


_SLOW = """
import time
from catp.runtime.generation.together import Together
step = Together.step
Together.step = lambda together: (time.sleep({} if together.running else 0), step(together))[1]
"""


@contextlib.contextmanager
def process(
    *arguments: str, step_seconds: float = 0.0, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str, list[dict[str, Any]]]]:
    """`catp-serve` as a user starts it: the process, its address, and the lines of its log so far.

    Where an answer must outlast what a test does meanwhile, each step takes `step_seconds` more.
    """
    program = _SLOW.format(step_seconds) * bool(step_seconds) + "from catp.runtime.commands.serve import app; app()"
    command = [sys.executable, "-c", program, *arguments, "--port", "0"]
    started = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}, cwd=Path(__file__).parent.parent
    )
    lines: list[dict[str, Any]] = []

    def read() -> None:
        assert started.stderr is not None
        for line in started.stderr:
            lines.append(json.loads(line) if line.startswith("{") else {"event": "text", "text": line})

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        wait_for(lambda: any(line["event"] == "listening" for line in lines), "it does not listen")
        yield started, next(line["url"] for line in lines if line["event"] == "listening"), lines
    finally:
        started.kill()
        started.wait()
        reader.join(IN_TIME)
        assert started.stderr is not None
        started.stderr.close()
