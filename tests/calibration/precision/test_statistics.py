"""Ranges of known data."""

from pathlib import Path

import numpy as np
import pytest

from catp.calibration.precision.formats.base import Range
from catp.calibration.precision.statistics import RangeMethod, Statistics, from_json, to_json
from catp.runtime import CatpError

METHODS: tuple[RangeMethod, ...] = ("minmax", "entropy", "percentile")


def batches(outlier: float = 30.0) -> list[np.ndarray]:
    """20,000 normal values in ten parts of different spread, and one far away."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, 0.5 + 0.1 * i, (20, 100)).astype(np.float32) for i in range(10)]
    parts[4][3, 5] = outlier
    return parts


def gather(method: RangeMethod, parts: list[np.ndarray], percentile: float = 99.0) -> Statistics:
    statistics = Statistics(method, percentile)
    for part in parts:
        statistics.add("x", part)
        statistics.add("y", np.abs(part[:1]))
    return statistics


def test_minmax_takes_the_extremes_of_all() -> None:
    parts = batches()
    values = np.concatenate(parts)
    found = gather("minmax", parts).ranges()
    assert found["x"] == Range(float(values.min()), 30.0) and list(found) == ["x", "y"]
    assert found["x"].largest == 30 and Range(-4, 3).largest == 4
    assert found["y"].low == min(float(np.abs(part[0]).min()) for part in parts)


@pytest.mark.parametrize("percentile", [90.0, 99.0])
def test_percentile_cuts_equal_shares_off_both_ends(percentile: float) -> None:
    parts = batches()
    values = np.concatenate(parts).ravel()
    found = gather("percentile", parts, percentile).ranges()["x"]
    cut = (100 - percentile) / 2
    width = 2 * 30 / 2048 + 0.01  # of a bin
    assert found.low == pytest.approx(np.percentile(values, cut), abs=width)
    assert found.high == pytest.approx(np.percentile(values, 100 - cut), abs=width)


def test_percentile_100_cuts_nothing_off_that_matters() -> None:
    found = gather("percentile", batches(), 100.0).ranges()["x"]
    assert found.high == pytest.approx(30, abs=0.05) and found.low == pytest.approx(
        np.concatenate(batches()).min(), abs=0.05
    )


def test_entropy_gives_a_single_outlier_up() -> None:
    parts = batches()
    values = np.concatenate(parts)
    found = gather("entropy", parts).ranges()["x"]
    # What is left out is less than the outlier, and the bulk is inside.
    assert found.high < 15 and values.std() * 2 < found.high and found.low < -2 * values.std()
    share = np.mean((values < found.low) | (values > found.high))
    assert share < 0.005


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_counts_as_its_numbers(method: RangeMethod) -> None:
    parts = [part.astype(np.float16) for part in batches()]
    assert gather(method, parts).ranges() == gather(method, [part.astype(np.float32) for part in parts]).ranges()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(wrong: float, method: RangeMethod) -> None:
    statistics = gather(method, batches())
    values = np.ones((4, 4), np.float32)
    values[2, 1] = wrong
    with pytest.raises(CatpError, match=r"language_model: relu: activations that are no number, or infinite.*catp-run"):
        statistics.add("language_model: relu", values)


@pytest.mark.parametrize("method", METHODS)
def test_what_never_changes_is_refused(method: RangeMethod) -> None:
    statistics = gather(method, batches())
    for _ in range(3):
        statistics.add("dead", np.full((2, 3), 0.25, np.float32))
    with pytest.raises(CatpError, match=r"dead: it was 0.25 everywhere in all samples.*--exclude"):
        statistics.ranges()
    statistics.add("dead", np.full((2, 3), 0.5, np.float32))
    assert statistics.ranges()["dead"].high <= 0.5


@pytest.mark.parametrize("method", METHODS)
def test_what_was_saved_goes_on_as_if_nothing_had_happened(method: RangeMethod, tmp_path: Path) -> None:
    parts = batches()
    whole = gather(method, parts).ranges()
    for half in (3, 6):  # before and after the outlier, for which histograms grow
        gather(method, parts[:half]).save(tmp_path / "s.npz", half)
        going_on = Statistics(method, 99.0)
        assert going_on.load(tmp_path / "s.npz") == half
        assert going_on.ranges() == gather(method, parts[:half]).ranges()
        for part in parts[half:]:
            going_on.add("x", part)
            going_on.add("y", np.abs(part[:1]))
        assert going_on.ranges() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


@pytest.mark.parametrize("method", METHODS)
def test_ranges_survive_json_to_the_last_bit(method: RangeMethod) -> None:
    ranges = gather(method, batches()).ranges()
    assert from_json(to_json(ranges)) == ranges
