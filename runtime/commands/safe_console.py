"""A console that prints nothing that would steer a terminal, whatever a file's name or a manifest has."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from catp.runtime.system.printable import printable


class SafeConsole(Console):
    """See rich.console.Console."""

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable(part) if isinstance(part, str) else part for part in objects), **options)

    def render_str(self, text: str, **options: Any) -> Any:
        return super().render_str(printable(text), **options)  # in tables
