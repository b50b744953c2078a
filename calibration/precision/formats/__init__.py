"""Formats: how one layer is quantised. A file for each way, registered in FORMATS."""

from __future__ import annotations

from catp.calibration.precision.formats.base import LayerFormat
from catp.calibration.precision.formats.dynamic_int8 import DYNAMIC_INT8
from catp.calibration.precision.formats.fp8 import FP8
from catp.calibration.precision.formats.int4 import INT4
from catp.calibration.precision.formats.static_int8 import STATIC_INT8
from catp.runtime.bundle.manifest import Format

FORMATS: dict[Format, tuple[LayerFormat, ...]] = {
    "int8": (DYNAMIC_INT8, STATIC_INT8),
    "fp8": (FP8,),
    "int4": (INT4,),
}
"""By the name that --to takes; of several ways, the first that a runtime computes is its default.

Activations of int8 that were scaled call by call were as fast on a CPU as known scales, and closer
(docs/precision.md).
"""
