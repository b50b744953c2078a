"""Parity of several groups of samples: the worst check of each kind counts."""

from __future__ import annotations

import pytest

from catp.export.verification import parity
from catp.runtime.bundle.manifest import ParityCheck


def found(value: float, limit: float) -> ParityCheck:
    return ParityCheck(subject="graph", measure="error", value=value, limit=limit, passed=value <= limit)


@pytest.mark.parametrize(
    ("first", "second", "worst"),
    [
        (found(0.1, 0.15), found(0.01, 0.0), 1),  # the smaller one fails: it is held to a closer limit
        (found(0.01, 0.0), found(0.1, 0.15), 0),
        (found(0.1, 0.15), found(0.12, 0.15), 1),
        (found(0.1, 0.0), found(float("nan"), 0.0), 1),
    ],
)
def test_a_check_that_fails_is_not_hidden_by_one_that_passes(
    first: ParityCheck, second: ParityCheck, worst: int
) -> None:
    assert parity._is_worse(second, first) == bool(worst)
