"""Memory for a bundle in floating point beside what it becomes."""

from __future__ import annotations

from catp.runtime.bundle.folder import Bundle
from catp.runtime.system.machine import available_memory

ROOM = 0.5
"""Share of the free memory that weights may take: as many quantised ones, and what is observed, come beside them."""


def is_tight(bundle: Bundle) -> bool:
    """Whether a bundle's weights are better left in their files, as they take too much of the memory that is free."""
    free = available_memory()
    weights = sum(graph.bytes for graph in bundle.manifest.graphs.values())
    return free is not None and weights > ROOM * free
