"""Two machines, as far as one can be two: two raylets on addresses of their own, that ask each other for a token."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import IN_TIME

TOKEN = "0123456789abcdef" * 4
CPUS = 3
"""Of each machine."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def two_raylets(machines: tuple[str, str], logs: Path, path: Path | None = None) -> Iterator[str]:
    """The address of a cluster; this process has what it needs to join it, and left it when the block ends.

    Args:
        machines: their addresses; Ray takes 127.0.0.1 for the address of the machine's network card.
        logs: a folder.
        path: before everything else on the workers' PYTHONPATH.
    """
    sessions = Path(f"/tmp/catp-{os.getpid()}")  # a socket's path has 107 characters at most
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    port = free_port()
    address = f"{machines[0]}:{port}"
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    import ray  # which reads the environment when it is imported

    search = os.pathsep.join(filter(None, (path and str(path), os.environ.get("PYTHONPATH"))))
    environ = {**os.environ, "PYTHONPATH": search}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", f"--num-cpus={CPUS}"]
    start += ["--object-store-memory=100000000", "--disable-usage-stats"]
    head = [f"--port={port}", f"--ray-client-server-port={free_port()}", "--include-dashboard=false"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for place, machine in enumerate(machines):
            more = ["--head", *head, f"--temp-dir={sessions}"] if place == 0 else [f"--address={address}"]
            log = logs / machine
            with log.open("w") as file:
                command = [*start, f"--node-ip-address={machine}", *more]
                started.append(subprocess.Popen(command, stdout=file, stderr=file, env=environ, start_new_session=True))
            _wait_for_line("Ray runtime started", log)
        yield address
    finally:
        ray.shutdown()
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in reversed(started):
            try:
                process.wait(30)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
        shutil.rmtree(sessions, ignore_errors=True)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def _wait_for_line(text: str, log: Path) -> None:
    until = time.monotonic() + IN_TIME
    while text not in log.read_text():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.1)
