"""How a comparison with PyTorch is measured and recorded."""

from __future__ import annotations

import numpy as np

from catp.runtime.bundle.manifest import ParityCheck


def check(subject: str, measure: str, value: float | np.floating, limit: float) -> ParityCheck:
    """Passed where the value is within its limit; NaN is not."""
    return ParityCheck(subject=subject, measure=measure, value=float(value), limit=limit, passed=bool(value <= limit))


def relative_error(actual: np.ndarray, wanted: np.ndarray) -> float:
    """Largest absolute difference, relative to the largest absolute value wanted."""
    actual, wanted = actual.astype(np.float64), wanted.astype(np.float64)
    return float(np.abs(actual - wanted).max() / max(np.abs(wanted).max(), 1e-30))
