"""Graphs that several bundles have in common, loaded once: two bundles of one checkpoint share a language model."""

from __future__ import annotations

from catp.runtime.bundle.folder import Bundle
from catp.runtime.providers.base import Engine, Moment, Provider


class SharedEngines:
    """A provider whose engines are shared by the content of their graphs, weights included.

    Without it, a model of 3.7 billion parameters would be in memory twice where only its vision encoder differs.

    Args:
        provider: one that executes the graphs themselves: plans are other files, and differ where graphs don't.
    """

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.name = provider.name
        self._engines: dict[tuple[str | None, ...], Engine] = {}

    def engine(self, bundle: Bundle, graph: str) -> Engine:
        """The engine of a graph, loaded if no bundle before had the same one."""
        spec = bundle.manifest.graphs[graph]
        content = spec.file.sha256, spec.external_data.sha256 if spec.external_data else None
        if content not in self._engines:
            self._engines[content] = self._provider.engine(bundle, graph)
        return self._engines[content]

    def synchronize(self) -> None:
        self._provider.synchronize()

    def moment(self) -> Moment:
        return self._provider.moment()
