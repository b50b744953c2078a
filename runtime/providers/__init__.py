"""Providers by name. One file each, registered in PROVIDERS; its library is imported only when it is asked for."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from catp.runtime.errors import UsageError
from catp.runtime.providers.base import Provider


@dataclass(frozen=True)
class _Entry:
    """Where a provider is found.

    Args:
        module: below this package.
        runs_plans: it runs the plans of an engine set; otherwise the ONNX graphs.
    """

    module: str
    provider: str
    runs_plans: bool = False


PROVIDERS = {
    "cpu": _Entry("onnx_runtime", "OrtProvider"),
    "openvino": _Entry("openvino.provider", "OpenVinoProvider"),
    "auto": _Entry("automatic", "AutomaticProvider"),
    "cuda": _Entry("onnx_runtime", "OrtProvider"),
    "ort-tensorrt": _Entry("onnx_runtime", "OrtProvider"),
    "tensorrt": _Entry("tensorrt", "TensorRTProvider", runs_plans=True),
    "tensorrt-rtx": _Entry("tensorrt", "TensorRTProvider", runs_plans=True),
}
"""By the name that commands take."""

ON_HOST = ("cpu", "openvino", "auto")
"""Providers whose tensors lie in host memory, so that one graph may follow another's; language models run on a CPU."""


def open_provider(name: str, threads: int | None = None, engines: str | None = None, verbose: bool = False) -> Provider:
    """The provider called `name`.

    Args:
        name: one of PROVIDERS.
        threads: CPU threads within an operator; None leaves it to the library.
        engines: name of the engine set, for the providers that run one; None: the newest that fits.
        verbose: let ONNX Runtime write its log to standard error.

    Raises:
        UsageError: unknown, or what it needs is not installed.
    """
    entry = PROVIDERS.get(name)
    if entry is None:
        raise UsageError(f"provider {name!r}: unknown; accepted: {', '.join(PROVIDERS)}")
    if engines is not None and not entry.runs_plans:
        raise UsageError(
            f"engines {engines!r}: provider {name} runs the ONNX graphs; engines are for tensorrt-rtx or tensorrt"
        )
    module = importlib.import_module(f"{__name__}.{entry.module}")
    make = getattr(module, entry.provider)
    provider: Provider = make(name, engines) if entry.runs_plans else make(name, threads, verbose)
    return provider
