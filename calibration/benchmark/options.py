"""Parsing of catp-bench's text options."""

from __future__ import annotations

from catp.calibration.benchmark.timing.rounds import Rounds
from catp.runtime.errors import UsageError
from catp.runtime.pruning import check_ratio

ITERATIONS = 50
NEW_TOKENS = 10

RATIOS = "0,0.25,0.5,0.75"
"""Timed where none are asked for."""


def parse_ratios(text: str) -> tuple[float, ...]:
    """Ratios separated by commas, ascending, each once, and 0 among them. Raises UsageError where they are none."""
    try:
        return tuple(sorted({0.0, *(check_ratio(float(part)) for part in text.split(","))}))
    except ValueError:
        raise UsageError(f"ratios {text!r}: give numbers separated by commas, such as {RATIOS}") from None


def parse_shares(text: str) -> tuple[float, ...]:
    """Shares of an encoder's work separated by commas, the largest first, each once. Raises UsageError where they are
    none."""
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}, reverse=True))
    except ValueError:
        found = ()
    if not found or not all(0 < share < 1 for share in found):  # NaN fails both comparisons
        raise UsageError(
            f"encoder flops {text!r}: give shares of the dense encoder's work, above 0 and below 1, separated by "
            "commas, such as 0.5,0.2"
        )
    return found


def parse_batches(text: str) -> tuple[int, ...]:
    """Numbers of images separated by commas, ascending, each once. Raises UsageError where they are none."""
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = (0,)
    if found[0] < 1:
        raise UsageError(f"batch {text!r}: give whole numbers from 1 on, separated by commas, such as 1,4")
    return found


def parse_rounds(iterations: int | None, min_time: str | None) -> Rounds:
    """How long to measure: `iterations` rounds, or `min_time` seconds ("5", "5s"). Raises UsageError for both."""
    if min_time is None:
        return Rounds(count=iterations or ITERATIONS)
    if iterations is not None:
        raise UsageError(f"--iterations {iterations} and --min-time {min_time}: give one of them")
    try:
        seconds = float(min_time.removesuffix("s"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--min-time {min_time!r}: give seconds, such as 5 or 5s")
    return Rounds(count=None, min_seconds=seconds)
