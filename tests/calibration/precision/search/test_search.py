"""The fewest layers that have to stay, on predicates with a known answer."""

import math
from collections.abc import Sequence

import pytest

from catp.calibration.precision.search.search import fewest_kept


class Predicate:
    """Good from `needed` layers on."""

    def __init__(self, needed: float) -> None:
        self.needed = needed
        self.tried: list[int] = []

    def __call__(self, kept: Sequence[int]) -> bool:
        assert list(kept) == list(range(len(kept)))  # a beginning
        self.tried.append(len(kept))
        return len(kept) >= self.needed


@pytest.mark.parametrize("count", [2, 3, 5, 16, 57, 200])
def test_the_shortest_is_found_in_few_tries(count: int) -> None:
    for needed in range(1, count):
        is_good = Predicate(needed)
        kept = fewest_kept(range(count), is_good)
        assert kept is not None and len(kept) == needed
        assert len(set(is_good.tried)) == len(is_good.tried) <= 2 * math.log2(count) + 1
        assert needed in is_good.tried and 0 not in is_good.tried


@pytest.mark.parametrize("count", [0, 1])
def test_where_only_one_layer_is_quantised_nothing_can_be_kept(count: int) -> None:
    is_good = Predicate(0)
    assert fewest_kept(range(count), is_good) is None and not is_good.tried


@pytest.mark.parametrize("count", [2, 3, 8, 57])
def test_none_where_nothing_helps(count: int) -> None:
    is_good = Predicate(math.inf)
    assert fewest_kept(range(count), is_good) is None
    assert max(is_good.tried) == count - 1  # at least one is quantised
    assert len(is_good.tried) <= math.log2(count) + 2


def test_what_is_returned_is_good_also_where_keeping_more_is_worse() -> None:
    for good in ({4}, {1, 9}, {8, 12}, {3, 4, 19}):
        kept = fewest_kept(range(20), lambda kept: len(kept) in good)  # noqa: B023
        assert kept is None or len(kept) in good
    kept = fewest_kept(range(20), lambda kept: len(kept) in (4, 6, 7, 8))
    assert kept is not None and len(kept) == 4
