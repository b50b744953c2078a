"""The arithmetic of a load's report, by samples whose figures are known."""

from __future__ import annotations

import pytest

from catp.calibration.benchmark.load.client import Sample
from catp.calibration.benchmark.load.report import Measured, Setting, compare_settings, measured


def setting(server: str = "ours", clients: int | None = 1, rate: float | None = None) -> Setting:
    return Setting(server=server, pictures="cached", clients=clients, rate=rate)


def test_times_and_rates_are_those_of_the_samples() -> None:
    first = Sample(began=10.0, ended=11.0, pieces=(10.25, 10.5, 11.0), tokens=6)
    second = Sample(began=10.5, ended=12.0, pieces=(11.5, 12.0), tokens=4)
    refused = Sample(began=9.0, ended=9.5, failure="429 queue_full")
    found = measured(setting(clients=2), [[first, second, refused]])
    assert (found.requests, found.tokens, found.failures) == (3, 10, {"429 queue_full": 1})
    # From the first request to the last answer, the refused one's time included: 9 to 12.
    assert found.tokens_per_second == (pytest.approx(10 / 3),) and found.requests_per_second == (pytest.approx(2 / 3),)
    assert found.first_ms is not None and found.gap_ms is not None and found.total_ms is not None
    assert found.first_ms.p50 == pytest.approx((250 + 1000) / 2) and found.first_ms.p99 == pytest.approx(992.5)
    assert found.gap_ms.p50 == pytest.approx(500) and found.total_ms.p50 == pytest.approx(1250)
    assert found.piece_tokens == pytest.approx(10 / 5)


def test_rounds_are_apart() -> None:
    """A pause between rounds is nobody's time."""
    rounds = [[Sample(start, start + 2.0, (start + 1.0,), 8)] for start in (0.0, 100.0)]
    assert measured(setting(), rounds).tokens_per_second == (4.0, 4.0)


def test_nothing_answered_is_said() -> None:
    found = measured(setting(), [[Sample(0.0, 1.0, failure="time-out")]])
    assert (found.tokens, found.first_ms, found.gap_ms, found.piece_tokens) == (0, None, None, None)
    assert found.throughput == 0 and compare_settings([found], 0) == ()


def test_what_is_compared_with_what() -> None:
    def of(server: str, clients: int | None, rate: float | None, *speeds: float) -> Measured:
        rounds = [[Sample(0.0, 1.0, (0.5,), round(speed))] for speed in speeds]
        return measured(setting(server, clients, rate), rounds)

    speeds = 100, 200, 100, 200, 100, 200, 100
    one, eight = of("ours", 1, None, *speeds), of("ours", 8, None, *(3 * speed for speed in speeds))
    open_loop = of("ours", None, 2.0, *speeds)
    theirs, their_eight = of("theirs", 1, None, *(speed // 2 for speed in speeds)), of("theirs", 8, None, *speeds)
    found = compare_settings([one, eight, open_loop, theirs, their_eight], seed=0)
    named = {(c.of.server, c.of.load, c.to.server, c.to.load, c.why): c.ratio for c in found}
    assert set(named) == {
        ("ours", "8", "ours", "1", "clients"),
        ("theirs", "8", "theirs", "1", "clients"),
        ("theirs", "1", "ours", "1", "server"),
        ("theirs", "8", "ours", "8", "server"),
    }
    # Paired by round: what halves one round halves both, and the ratio stands without an interval's width.
    assert named["ours", "8", "ours", "1", "clients"].median == 3
    assert named["ours", "8", "ours", "1", "clients"].interval_95 == (3, 3)
    assert named["theirs", "8", "ours", "8", "server"].median == pytest.approx(1 / 3)
