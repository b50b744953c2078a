"""NNCF, imported so that it keeps to itself."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from catp.runtime.providers.openvino.library import import_openvino


def import_nncf() -> Any:
    """The package, without its telemetry and its remarks on standard output."""
    import_openvino()
    nncf = importlib.import_module("nncf")
    nncf.set_log_level(logging.ERROR)
    return nncf
