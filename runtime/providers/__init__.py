"""Providers by name. One file each; a provider's library is imported only when it is asked for."""

from __future__ import annotations

from catp.runtime.errors import UsageError
from catp.runtime.providers.base import Provider

PROVIDERS = ("cpu", "cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx")


def open_provider(name: str, threads: int | None = None, engines: str | None = None) -> Provider:
    """The provider called `name`.

    Args:
        name: one of PROVIDERS.
        threads: CPU threads within an operator; None leaves it to the library.
        engines: name of the engine set, for the providers that run one; None: the newest that fits.

    Raises:
        UsageError: unknown, or what it needs is not installed.
    """
    if name in ("tensorrt", "tensorrt-rtx"):
        from catp.runtime.providers.tensorrt import TensorRTProvider

        return TensorRTProvider(name, engines)
    if engines is not None:
        raise UsageError(
            f"engines {engines!r}: provider {name} runs the ONNX graphs; engines are for tensorrt-rtx or tensorrt"
        )
    if name in ("cpu", "cuda", "ort-tensorrt"):
        from catp.runtime.providers.onnx_runtime import OrtProvider

        return OrtProvider(name, threads)
    raise UsageError(f"provider {name!r}: unknown; accepted: {', '.join(PROVIDERS)}")
