"""OpenVINO and NNCF, imported so that they keep to themselves."""

from __future__ import annotations

import importlib
import logging
import sys
from typing import Any, cast


def import_openvino() -> Any:
    """The package, without its telemetry: a benchmark must not send anything, least of all while it measures."""
    # Where this import fails, OpenVINO and NNCF fall back to a stub of their own.
    cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)
    return importlib.import_module("openvino")


def import_nncf() -> Any:
    """The package, without its telemetry and its remarks on standard output."""
    import_openvino()
    nncf = importlib.import_module("nncf")
    nncf.set_log_level(logging.ERROR)
    return nncf
