"""Intervals of ratios: right where they are known, and as wide as they claim."""

import numpy as np
import pytest

from catp.calibration.benchmark.timing.intervals import FEWEST, paired_ratio, ratio_of_medians


def test_what_drifts_alike_has_an_exact_ratio() -> None:
    drift = np.linspace(1, 3, 20)
    found = paired_ratio((2 * drift).tolist(), drift.tolist(), seed=0)
    assert found.median == 2 and found.interval_95 == (2, 2) and found.is_clear
    # Unpaired, the same drift hides even a factor of 1.2.
    assert not ratio_of_medians((1.2 * drift).tolist(), drift.tolist(), seed=0).is_clear


def test_the_median_is_of_quotients_not_of_values() -> None:
    assert paired_ratio([1, 20, 9], [1, 10, 3], seed=0).median == 2


def test_too_few_values_have_no_interval() -> None:
    few = [1.0] * (FEWEST - 1)
    assert paired_ratio(few, few, seed=0).interval_95 is None and not paired_ratio(few, few, seed=0).is_clear
    assert ratio_of_medians(few, [1.0] * 50, seed=0).interval_95 is None
    assert paired_ratio([1.0] * FEWEST, [1.0] * FEWEST, seed=0).interval_95 == (1, 1)


def test_intervals_hold_what_they_promise() -> None:
    """Of many experiments with known truth, about 95 % cover it; neighbours resemble each other in half of them."""
    rng = np.random.default_rng(1)
    covered = {0.0: 0, 0.5: 0}
    experiments = 120
    for memory in covered:
        for seed in range(experiments):
            noise = rng.normal(0, 0.1, 60)
            for i in range(1, len(noise)):
                noise[i] += memory * noise[i - 1]
            found = paired_ratio(np.exp(noise).tolist(), [1.0] * 60, seed)
            assert found.interval_95 is not None
            covered[memory] += found.interval_95[0] <= 1 <= found.interval_95[1]
    assert covered[0.0] / experiments > 0.88 and covered[0.5] / experiments > 0.80


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).exponential(size=30).tolist()
    assert paired_ratio(values, [1.0] * 30, seed=3) == paired_ratio(values, [1.0] * 30, seed=3)


@pytest.mark.parametrize(("values", "baseline"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_what_has_no_ratio_is_refused(values: list[float], baseline: list[float]) -> None:
    with pytest.raises(ValueError):
        paired_ratio(values, baseline, seed=0)
    if values != [1.0] or baseline != [1.0, 2.0]:
        with pytest.raises(ValueError):
            ratio_of_medians(values, baseline, seed=0)
