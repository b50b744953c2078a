"""Providers by name. One file each; a provider's library is imported only when it is asked for."""

from __future__ import annotations

from catp.runtime.engines.base import Provider
from catp.runtime.errors import UsageError

PROVIDERS = ("cpu", "cuda")


def open_provider(name: str, threads: int | None = None) -> Provider:
    """The provider called `name`.

    Args:
        name: one of PROVIDERS.
        threads: CPU threads within an operator; None leaves it to the library.

    Raises:
        UsageError: unknown, or what it needs is not installed.
    """
    if name in ("cpu", "cuda"):
        from catp.runtime.engines.onnx_runtime import OrtProvider

        return OrtProvider(name, threads)
    raise UsageError(f"provider {name!r}: unknown; accepted: {', '.join(PROVIDERS)}")
