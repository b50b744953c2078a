"""The errors a user can cause or must act on; everything else keeps its traceback.

Messages say what was given, what is accepted and what to do, in one line.
"""

from __future__ import annotations


class CatpError(Exception):
    """A run or a check failed. Commands print the message and exit with `exit_code`."""

    exit_code = 1


class UsageError(CatpError):
    """A request that can't be met as it is: the user has to change the call."""

    exit_code = 2


class BundleError(CatpError):
    """A bundle is missing something, was altered, or was written by a newer version."""


class GraphError(CatpError):
    """A graph that was loaded can't be run with what it was given, or what it gives is no result."""

    def __init__(self, graph: str, reason: str, stage: str = "") -> None:
        super().__init__(f"{graph}{f', {stage}' if stage else ''}: {reason}")
        self.graph = graph
        self.reason = reason

    def during(self, stage: str) -> GraphError:
        """The same error, with the stage of the work that the graph was run for."""
        return GraphError(self.graph, self.reason, stage)


class ImageError(CatpError):
    """An image can't be read or is refused."""


class ParityError(CatpError):
    """Exported graphs do not reproduce the checkpoint; nothing was published."""
