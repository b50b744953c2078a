"""Ranges of known data."""

from pathlib import Path

import numpy as np
import pytest

from catp.calibration.precision.formats.base import Range
from catp.calibration.precision.ranges.statistics import RangeMethod, Statistics, from_json, to_json
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


def test_advice_names_layers_as_exclude_takes_them() -> None:
    readers = {"vision_encoder: gelu_1": ["layers.1.mlp.fc2", "layers.1.mlp: node(2)"]}
    advice = r"leave out what reads it: --exclude layers\.1\.mlp\.fc2 --exclude 'layers\.1\.mlp: node\(2\)'$"
    statistics = Statistics("minmax", readers=readers)
    statistics.add("vision_encoder: gelu_1", np.zeros((2, 3), np.float32))
    with pytest.raises(CatpError, match=f"vision_encoder: gelu_1: it was 0 everywhere .*{advice}"):
        statistics.ranges()
    with pytest.raises(CatpError, match=f"no number, or infinite.*{advice}"):
        statistics.add("vision_encoder: gelu_1", np.full(3, np.nan, np.float32))


@pytest.mark.parametrize("method", ["entropy", "percentile"])
@pytest.mark.parametrize("largest", [0.5, 1e-6, 1e-30])
def test_a_range_without_the_rare_values_is_none(method: RangeMethod, largest: float) -> None:
    """A nearly dead layer: 99.999 % zeros. Cut off, its scale would be 0."""
    statistics = Statistics(method, 99.9)
    values = np.zeros(200_000, np.float32)
    values[:2] = largest * np.array([1, 0.3])
    statistics.add("x", values)
    found = statistics.ranges()["x"]
    assert found.low <= 0 < found.high == pytest.approx(largest, rel=0.02)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", [0.0, 1e-44, 1e-37, 1e-12, 1e-3])
def test_histograms_do_not_grow_without_bounds(method: RangeMethod, first: float) -> None:
    """Values may begin next to nothing beside the later ones."""
    rng = np.random.default_rng(1)
    statistics = Statistics(method, 99.0)
    statistics.add("x", (rng.normal(0, 1, (50, 40)) * first).astype(np.float32))
    values = rng.normal(0, 2, (100, 100)).astype(np.float32)
    statistics.add("x", values)
    found = statistics.ranges()["x"]
    share = np.mean((values < found.low) | (values > found.high))
    assert share < 0.05 and found.largest <= float(np.abs(values).max()) * 1.001
    statistics.add("x", 0 * values)
    assert statistics.ranges()["x"].largest > 0


def test_an_empty_tensor_says_nothing() -> None:
    statistics = Statistics("percentile")
    statistics.add("x", np.empty((1, 0, 8), np.float32))
    statistics.add("x", np.arange(8, dtype=np.float32))
    assert statistics.ranges()["x"].high == pytest.approx(7, abs=0.01)


@pytest.mark.parametrize("ends", [(np.nan, 1.0), (0.0, np.inf), (-np.inf, 0.0), (1.0, 0.5)])
def test_what_is_no_range(ends: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="no range"):
        Range(*ends)
    with pytest.raises(ValueError, match="no range"):
        from_json({"x": list(ends)})


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
