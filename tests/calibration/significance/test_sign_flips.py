import itertools

import numpy as np
import pytest

from catp.calibration.significance.mcnemar import mcnemar_exact
from catp.calibration.significance.sign_flips import sign_flip_test

RNG = np.random.default_rng(2)
PARTS = np.array([-0.9, -0.6, -0.3, 0, 0, 0.3, 0.6, 0.9, 1])


def by_all_signs(sums: np.ndarray) -> float:
    """Every choice of signs, one by one."""
    flipped = [np.dot(signs, sums) for signs in itertools.product((1, -1), repeat=len(sums))]
    return float(np.mean(np.abs(flipped) >= abs(sums.sum()) - 1e-9))


def test_it_is_the_value_worked_out_by_hand() -> None:
    # 0.3 + 0.6 + 0.9: of eight choices of signs, all plus and all minus are as far from 0.
    assert sign_flip_test([0.3, 0.6, 0.9], seed=0) == pytest.approx(2 / 8)
    # 1.2: also 0.9 + 0.6 - 0.3 itself, and its opposite.
    assert sign_flip_test([-0.3, 0.6, 0.9, 0], seed=0) == pytest.approx(4 / 8)
    assert sign_flip_test([0, 0, 0], seed=0) == 1


def test_it_is_all_signs_and_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    for _ in range(20):
        values = RNG.choice(PARTS, 12)
        wanted = by_all_signs(values)
        assert sign_flip_test(values, seed=0) == pytest.approx(wanted, abs=1e-12)
        found = stats.permutation_test(
            (values,), lambda x, axis: np.round(x.sum(axis=axis), 9), permutation_type="samples", n_resamples=np.inf
        )
        assert found.pvalue == pytest.approx(wanted, abs=1e-12)


def test_right_or_wrong_it_is_mcnemars() -> None:
    for better, worse in ((0, 4), (7, 2), (60, 41), (900, 1000)):
        values = [1.0] * better + [-1.0] * worse + [0.0] * 5
        assert sign_flip_test(values, seed=0) == pytest.approx(mcnemar_exact(better, worse), rel=1e-7)


def test_questions_about_one_image_have_one_sign() -> None:
    values, images = RNG.choice(PARTS, 24), np.repeat(np.arange(8), 3)
    sums = values.reshape(8, 3).sum(1)
    assert sign_flip_test(values, 0, images.tolist()) == pytest.approx(by_all_signs(sums))
    shuffled = RNG.permutation(24)
    names = [f"image {number}" for number in images[shuffled]]
    assert sign_flip_test(values[shuffled], 0, names) == pytest.approx(by_all_signs(sums))
    # Ten times the same answers about ten images show no more than ten differences do.
    assert sign_flip_test([0.6] * 100, 0, [i % 10 for i in range(100)]) == pytest.approx(2 / 1024)


def test_drawn_signs_come_close_to_all_of_them() -> None:
    values = RNG.choice(PARTS, 60) + 0.05
    wanted = sign_flip_test(values, seed=0)
    drawn = [sign_flip_test(values, seed, outcomes=10) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    # Binomial: 100,000 drawn, so three standard deviations are 0.005 at most.
    assert drawn == pytest.approx([wanted] * 3, abs=0.005) and 0.001 < wanted < 0.9


def test_a_drawn_p_value_is_never_zero() -> None:
    assert sign_flip_test(np.linspace(0.5, 1, 400), seed=1) == 1 / 100_000


def test_two_equal_ways_differ_as_seldom_as_the_level_says() -> None:
    found = [
        sign_flip_test(np.random.default_rng(trial).choice(PARTS[:-1], 40), 0, outcomes=10**6) for trial in range(600)
    ]
    assert 0.025 < np.mean([p < 0.05 for p in found]) < 0.075


@pytest.mark.parametrize(
    ("values", "clusters", "message"),
    [([], None, "shape"), ([[1.0]], None, "shape"), ([float("nan")], None, "finite"), ([1.0], [1, 2], "2 clusters")],
)
def test_what_it_cannot_read_is_refused(values: list[float], clusters: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sign_flip_test(values, 0, clusters)
