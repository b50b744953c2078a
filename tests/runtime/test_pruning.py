import math

import numpy as np
import pytest

from catp.runtime import UsageError
from catp.runtime.pruning import check_mass, check_ratio, num_kept, num_kept_by_mass, top_indices


@pytest.mark.parametrize(
    ("ratio", "queries", "kept"),
    [
        (0, 32, 32),
        (0.25, 32, 24),
        (0.5, 32, 16),
        (0.75, 32, 8),
        (0.9, 32, 3),
        (0.999, 32, 1),
        (0.5, 5, 3),
        (np.float32(0.5), 32, 16),
    ],
)
def test_num_kept(ratio: float, queries: int, kept: int) -> None:
    assert num_kept(ratio, queries) == kept


@pytest.mark.parametrize("ratio", [1, 1.5, -0.1, math.nan, math.inf, "0.5"])
def test_what_is_not_a_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(UsageError, match="0 <= ratio < 1"):
        check_ratio(ratio)


def test_mass_keeps_the_fewest_that_reach_it() -> None:
    scores = np.array([[4, 3, 2, 1], [10, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.float32)
    assert num_kept_by_mass(scores, 0.4).tolist() == [1, 1, 2, 4]
    assert num_kept_by_mass(scores, 0.5).tolist() == [2, 1, 2, 4]
    assert num_kept_by_mass(scores, 0.7).tolist() == [2, 1, 3, 4]
    assert num_kept_by_mass(scores, 1.0).tolist() == [4, 1, 4, 4]
    assert num_kept_by_mass(scores, 1e-9).tolist() == [1, 1, 1, 4]  # without any votes nothing is dropped


@pytest.mark.parametrize("mass", [0, -0.5, 1.01, math.nan, "0.5"])
def test_what_is_no_mass_is_refused(mass: float) -> None:
    with pytest.raises(UsageError, match="0 < mass <= 1"):
        check_mass(mass)


def test_top_indices_are_ascending_and_ties_go_to_the_lower() -> None:
    assert top_indices(np.array([[1, 5, 5, 5, 0]]), 2).tolist() == [[1, 2]]
    assert top_indices(np.array([[1, 0, 3, 2, 0]]), 3).tolist() == [[0, 2, 3]]
    assert top_indices(np.tile([1, 2, 1, 2], (1, 50)), 110).tolist() == [sorted([*range(1, 200, 2), *range(0, 20, 2)])]


def test_the_ends_of_both_ranges_that_belong_to_them() -> None:
    assert check_ratio(0) == 0 and check_ratio(math.nextafter(1, 0)) < 1
    assert check_mass(1) == 1 and check_mass(math.nextafter(0, 1)) is not None and check_mass(None) is None
