"""The ingress: a process that checks keys and bodies, and relays what a replica answers."""

from __future__ import annotations

from typing import Any

from ray.serve.handle import DeploymentHandle
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catp.runtime.cluster.relay import Relay
from catp.runtime.cluster.settings import ClusterSettings
from catp.runtime.server.http.front import Front
from catp.runtime.server.protocols.operations import Operation


class Ingress:
    """A process of Ray behind its proxies; the front of its application is that of `catp-serve`.

    Args:
        models: the replicas.

    Raises:
        UsageError: the file of keys can't be read.
    """

    def __init__(self, models: DeploymentHandle[Any], settings: ClusterSettings) -> None:
        server = settings.read()
        relay = Relay(models, server)
        open_paths = [(path, False) for path in ("/health", "/health/ready", "/health/live")]
        open_paths += [("/", True)] if server.page else []
        # Every path goes to the relay; these alone are not those that an operation is by default.
        operations = [
            Operation(path, relay, "As of catp-serve", None, needs_key=False, logged=logged, traced=logged)
            for path, logged in open_paths
        ]
        self._front = Front(relay, server, operations, lambda: False)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Called by Ray once the process has its handle."""
        return _WithoutId(self._front)


class _WithoutId:
    """An application whose responses have no request's id: Ray's proxy writes the same one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                del MutableHeaders(scope=message)["x-request-id"]
            await send(message)

        await self._app(scope, receive, answer)
