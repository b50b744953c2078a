"""Percentiles and spread against cases worked out by hand."""

import numpy as np
import pytest

from catp.calibration.benchmark.timing.summary import needed, percentile, summarize


def test_percentiles_are_interpolated_between_ranks() -> None:
    values = [40.0, 10.0, 30.0, 20.0]  # ranks 0 to 3: 10, 20, 30, 40
    assert percentile(values, 0) == 10 and percentile(values, 100) == 40
    assert percentile(values, 50) == 25  # rank 1.5
    assert percentile(values, 90) == pytest.approx(37)  # rank 2.7
    assert percentile([7.0], 99) == 7


def test_percentiles_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).exponential(size=137).tolist()
    for percent in (1, 33, 50, 90, 95, 99):
        assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_what_has_no_percentile_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError):
        percentile(values, percent)


def test_a_percentile_needs_samples_beyond_it() -> None:
    assert [needed(percent) for percent in (50, 90, 95, 99)] == [1, 10, 20, 100]
    assert summarize([1.0] * 9).p90 is None and summarize([1.0] * 10).p90 == 1
    assert summarize([1.0] * 19).p95 is None and summarize([1.0] * 20).p95 == 1
    assert summarize([1.0] * 99).p99 is None and summarize([1.0] * 100).p99 == 1


def test_mean_and_spread() -> None:
    found = summarize([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0])
    assert (found.samples, found.min, found.mean, found.p50) == (8, 2, 5, 4.5)
    assert found.std == pytest.approx((32 / 7) ** 0.5)  # squares sum to 9 + 3 * 1 + 4 + 16 = 32
    assert found.variation == pytest.approx((32 / 7) ** 0.5 / 5)
    one = summarize([3.0])
    assert one.std is None and one.variation is None
