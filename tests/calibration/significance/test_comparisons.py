import numpy as np
import pytest

from catp.calibration.significance.comparisons import LEVEL, compare_pairs, describe_p, name_test
from catp.calibration.significance.holm import holm
from catp.calibration.significance.mcnemar import mcnemar_exact
from catp.calibration.significance.sign_flips import sign_flip_test

RNG = np.random.default_rng(1)
RIGHT = (RNG.random((60, 3)) < (0.9, 0.8, 0.3)).astype(float)


def test_the_measure_and_the_images_choose_the_test() -> None:
    alone = list(range(60))
    assert name_test(RIGHT, alone) == "McNemar's exact test"
    assert name_test(RIGHT, [number // 2 for number in alone]) == "sign flips by image"
    assert name_test(np.where(RIGHT == 1, 0.9, 0), alone) == "sign flips by image"


def test_right_or_wrong_on_images_of_their_own_is_mcnemars() -> None:
    pairs = [(1, 0), (2, 0), (2, 1)]
    found = compare_pairs(RIGHT, list(range(60)), pairs, seed=0)
    wanted = []
    for place, other in pairs:
        better = sum(a > b for a, b in zip(RIGHT[:, place], RIGHT[:, other]))
        worse = sum(a < b for a, b in zip(RIGHT[:, place], RIGHT[:, other]))
        wanted.append(mcnemar_exact(better, worse))
    assert [found[pair].p_value for pair in pairs] == wanted
    assert [found[pair].p_corrected for pair in pairs] == holm(wanted)
    assert [found[pair].finding for pair in pairs] == ["no difference shown", *["difference shown"] * 2]


def test_parts_of_a_point_are_tested_by_image() -> None:
    values, images = 0.3 * RIGHT, [number // 3 for number in range(60)]
    found = compare_pairs(values, images, [(2, 1)], seed=7)
    assert found[2, 1].p_value == sign_flip_test(values[:, 2] - values[:, 1], 7, images)


def test_a_pair_that_comes_twice_is_one_comparison() -> None:
    images = list(range(60))
    twice = compare_pairs(RIGHT, images, [(1, 0), (2, 0), (1, 0)], seed=0)
    assert twice == compare_pairs(RIGHT, images, [(1, 0), (2, 0)], seed=0) and len(twice) == 2
    assert compare_pairs(RIGHT, images, [], seed=0) == {}


def test_correction_takes_back_what_many_comparisons_find_by_chance() -> None:
    """Forty settings that guess, five times."""
    found = []
    for trial in range(5):
        right = (np.random.default_rng(trial).random((80, 40)) < 0.5).astype(float)
        pairs = [(place, 0) for place in range(1, 40)]
        found += compare_pairs(right, list(range(80)), pairs, seed=0).values()
    assert sum((tested.p_value or 0) < LEVEL for tested in found) > 3
    assert {tested.finding for tested in found} == {"no difference shown"}


@pytest.mark.parametrize(("p", "words"), [(1.0, "p 1"), (0.0339, "p 0.034"), (0.001, "p 0.001"), (1e-9, "p < 0.001")])
def test_p_values_are_short(p: float, words: str) -> None:
    assert describe_p(p) == words
