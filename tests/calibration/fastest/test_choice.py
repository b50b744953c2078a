"""The choice, from times that are given: what is faster, what is as fast, and what passes the other half."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from catp.calibration.accuracy.statistics import lowest_difference
from catp.calibration.fastest.choice import ALPHA, choose, confidence_of, front
from catp.calibration.fastest.progress import Cell
from catp.calibration.fastest.report import Candidate
from catp.calibration.fastest.search import FIRST, confirm_fastest, judge, reason_of
from catp.calibration.fastest.triples import Triple

ROUNDS, SEED = 24, 3
DRIFT = 1 + 0.5 * np.sin(np.arange(ROUNDS))
"""Noise of the machine, round by round: far larger than the differences below, and the same for all of a round."""
IMAGES = tuple(str(number) for number in range(400))


def times(milliseconds: float, noise: float = 0.002, seed: int = 0) -> tuple[float, ...]:
    return tuple(DRIFT * milliseconds * (1 + noise * np.random.default_rng(seed).standard_normal(ROUNDS)))


def cell(bundle: str, lost: int, half: str = "search") -> Cell:
    right = (0.0,) * lost + (1.0,) * (len(IMAGES) - lost)
    return Cell.model_validate(
        {"half": half, "triple": Triple(bundle=bundle, ratio=0.0), "right": right, "images": IMAGES, "skipped": 0,
         "tokens_kept": 32.0}
    )  # fmt: skip


def candidates(lost: Sequence[int], milliseconds: Sequence[float], budget: float = 0.05) -> list[Candidate]:
    found = judge([cell(str(place), count) for place, count in enumerate(lost)], {}, budget, SEED)
    return [
        one.model_copy(update={"milliseconds": times(ms, seed=place)})
        for place, (one, ms) in enumerate(zip(found, milliseconds))
    ]


def test_a_clear_difference_is_seen_through_the_machine_s_drift() -> None:
    given = {0: times(50), 1: times(48, seed=1), 2: times(60, seed=2)}
    found = choose(given, {0: 0.0, 1: -0.01, 2: 0.0}, given, SEED)
    assert (found.fastest, found.chosen, found.tied) == (1, 1, (1,))
    for place in (0, 2):
        assert found.behind[place].median == pytest.approx(np.median(np.divide(given[place], given[1])))


def test_of_equally_fast_ones_that_loses_least_is_taken() -> None:
    given = {0: times(60), 1: times(50, 0.05, 1), 2: times(50.2, 0.05, 2), 3: times(50.1, 0.05, 3)}
    found = choose(given, {0: 0.0, 1: -0.019, 2: -0.004, 3: -0.01}, given, SEED)
    assert set(found.tied) == {1, 2, 3} and found.chosen == 2
    # A gain is no loss: then the median decides.
    fastest, *others = sorted((1, 2, 3), key=lambda place: np.median(given[place]))
    found = choose(given, {0: 0.0, fastest: 0.0, **dict.fromkeys(others, 0.01)}, given, SEED)
    assert found.chosen == found.fastest == fastest


def test_only_those_among_are_chosen() -> None:
    given = {0: times(50), 1: times(20), 2: times(40)}
    assert choose(given, dict.fromkeys(given, 0.0), [0, 2], SEED).chosen == 2


def test_with_too_few_rounds_nothing_is_told_apart() -> None:
    given = {0: (50.0,) * 5, 1: (30.0,) * 5}
    found = choose(given, {0: 0.0, 1: -0.01}, given, SEED)
    assert found.tied == (0, 1) and found.fastest == 1 and found.chosen == 0


def test_all_attempts_together_err_rarely() -> None:
    one_sided = [(1 - confidence_of(attempt)) / 2 for attempt in range(1, 50)]
    assert one_sided[0] == pytest.approx(0.025) and sum(one_sided) <= ALPHA


def test_the_front_has_what_nothing_is_better_than() -> None:
    medians, accuracies = [50, 40, 40, 30, 60], [0.9, 0.9, 0.8, 0.7, 0.95]
    assert front(medians, accuracies) == [False, True, False, True, True]


def test_losses_and_budget_are_those_of_the_ratio_s_search() -> None:
    lost = (0, 2, 30)
    found = judge([cell(str(place), count) for place, count in enumerate(lost)], {}, 0.02, SEED)
    for place, count in enumerate(lost):
        right = np.array(cell("", count).right)
        difference, low = lowest_difference(right, np.ones(len(IMAGES)), IMAGES, SEED)
        assert found[place].difference == pytest.approx(-count / len(IMAGES)) == difference.mean
        assert found[place].low == (0 if place == FIRST else low)
    assert [one.within for one in found] == [True, True, False]


def confirm(found: Sequence[Candidate], lost: dict[str, int], budget: float = 0.05):  # type: ignore[no-untyped-def]
    """With so many wrong answers on the other half, by bundle."""
    return confirm_fastest(
        found, lambda asked: [cell(one.bundle, lost[one.bundle], "confirmation") for one in asked], budget, SEED
    )


def test_what_is_not_confirmed_gives_way_to_the_next_fastest() -> None:
    found = candidates((0, 4, 4, 90), (50, 20, 30, 10))
    assert not found[3].within
    attempts, chosen, choice = confirm(found, {"0": 0, "1": 40, "2": 2})
    assert [(one.candidate, one.confirmed) for one in attempts] == [(1, False), (2, True)] and chosen == 2
    assert [one.confidence for one in attempts] == [0.95, 0.975]
    assert attempts[0].low < -0.05 <= attempts[1].low and attempts[1].difference == pytest.approx(-0.005)
    assert reason_of(found, 2, choice) == "2, ratio 0 is the fastest within the budget"


def test_a_later_attempt_has_to_be_surer() -> None:
    """A loss that the first attempt would pass with, and the second one does not."""
    right, full = np.array(cell("", 8).right), np.ones(len(IMAGES))
    (_, first), (_, second) = (
        lowest_difference(right, full, IMAGES, SEED, confidence_of(attempt)) for attempt in (1, 2)
    )
    assert second < first
    budget = -(first + second) / 2
    found = candidates((0, 0, 0), (50, 20, 30), budget)
    attempts, chosen, _ = confirm(found, {"0": 0, "1": 60, "2": 8}, budget)
    assert [one.confirmed for one in attempts] == [False, False] and chosen is None
    assert confirm(found, {"0": 0, "1": 8, "2": 8}, budget)[1] == 1


def test_where_nothing_is_faster_the_unpruned_one_is_kept_and_needs_no_confirmation() -> None:
    found = candidates((0, 0), (50, 60))
    attempts, chosen, choice = confirm(found, {})
    assert (attempts, chosen) == ([], FIRST) and "nothing within the budget is clearly faster" in reason_of(
        found, FIRST, choice
    )
