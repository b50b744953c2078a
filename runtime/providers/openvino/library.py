"""OpenVINO, imported so that it keeps to itself, and the one Core of this process."""

from __future__ import annotations

import functools
import importlib
import sys
from typing import Any, cast

from catp.runtime.providers.openvino.signal_stack import signal_stack_kept


def import_openvino() -> Any:
    """The package, without its telemetry: neither a benchmark nor a device that answers must send anything.

    Raises:
        ImportError: it is not installed, or can't be loaded.
    """
    # Where this import fails, OpenVINO and NNCF fall back to a stub of their own.
    cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")


@functools.cache
def shared_core() -> Any:
    """The openvino.Core that all providers of this process use, and that lives as long as the process.

    Plugins are loaded once, and no Core of ours is freed before another one (`signal_stack_kept`).

    Raises:
        ImportError: OpenVINO is not installed, or can't be loaded.
    """
    core = import_openvino().Core()
    with signal_stack_kept():
        core.available_devices  # noqa: B018  which loads the CPU's plugin, and its stack with it
    return core
