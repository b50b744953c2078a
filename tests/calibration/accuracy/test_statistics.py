import numpy as np
import pytest

from catp.calibration.accuracy.statistics import (
    bootstrap_interval,
    images_needed,
    mean_difference,
    unseen_losses,
    wilson_interval,
)

RNG = np.random.default_rng(0)


def test_wilson_interval_by_hand() -> None:
    # 8 of 10: (0.8 + 1.92/10 ± 1.96 sqrt(0.16/10 + 3.8416/400)) / (1 + 3.8416/10) = 0.490 to 0.943
    low, high = wilson_interval(8, 10)
    assert (round(low, 3), round(high, 3)) == (0.49, 0.943)
    for total in range(1, 200):
        assert wilson_interval(total, total)[1] == 1.0
        assert wilson_interval(0, total)[0] == 0.0


def test_many_values_give_the_normal_interval() -> None:
    values = RNG.normal(3, 2, 4000)
    low, high = bootstrap_interval(values, seed=1, resamples=4000)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_few_different_values_give_the_normal_interval_too() -> None:
    values = RNG.choice([0, 0.3, 0.6, 0.9, 1], 50_000)  # drawn by kind, not one by one
    low, high = bootstrap_interval(values, seed=1, confidence=0.9, resamples=4000)
    assert (high - low) / 2 == pytest.approx(1.645 * values.std() / np.sqrt(len(values)), rel=0.05)


def test_the_interval_is_that_of_drawing_values_one_by_one() -> None:
    values = np.array([0.0, 0.0, 1.0, 0.3, 0.9, 0.0])
    drawn = np.random.default_rng(7).choice(values, (200_000, len(values))).mean(1)
    expected = np.quantile(drawn, [0.05, 0.95])
    assert bootstrap_interval(values, seed=1, confidence=0.9, resamples=50_000) == pytest.approx(expected, abs=0.017)


def test_it_covers_the_truth_as_often_as_it_says() -> None:
    hits = 0
    for trial in range(400):
        low, high = bootstrap_interval(RNG.random(80) < 0.7, seed=trial, resamples=400)
        hits += low <= 0.7 <= high
    assert 0.90 <= hits / 400 <= 0.98


def test_the_same_seed_gives_the_same_interval_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    values = RNG.random(300)
    once = bootstrap_interval(values, seed=5)
    assert once == bootstrap_interval(values, seed=5) != bootstrap_interval(values, seed=6)
    monkeypatch.setattr("catp.calibration.accuracy.statistics.BLOCK", 1000)
    assert bootstrap_interval(values, seed=5) == pytest.approx(once, abs=1e-12)


def test_values_about_one_image_are_drawn_together() -> None:
    # Five equal values an image: as sure as a fifth as many values, so the interval is sqrt(5) as wide.
    images = [f"image {i}" for i in range(1000) for _ in range(5)]
    values = np.repeat(RNG.random(1000), 5)
    low, high = bootstrap_interval(values, seed=1)
    wide_low, wide_high = bootstrap_interval(values, seed=1, clusters=images)
    assert (wide_high - wide_low) / (high - low) == pytest.approx(5**0.5, rel=0.1)
    # Where all are alone in their cluster, clusters change nothing.
    alone = bootstrap_interval(values, seed=1, clusters=[str(i) for i in range(5000)])
    assert alone == pytest.approx((low, high))


def test_clusters_of_different_sizes_weigh_what_they_hold() -> None:
    low, high = bootstrap_interval([1, 1, 1, 1, 0], seed=1, clusters=["a", "a", "a", "a", "b"])
    assert (low, high) == (0, 1)  # a quarter of the resamples are b twice, a quarter a twice
    low, high = bootstrap_interval([1, 1, 1, 1, 0], seed=1, clusters=["a", "a", "a", "a", "b"], confidence=0.4)
    assert (low, high) == pytest.approx((0.8, 0.8))  # the other half: 4 right of 5


def test_a_difference_of_nothing_is_zero() -> None:
    values = RNG.random(50)
    difference = mean_difference(values, values, seed=1)
    assert (difference.mean, difference.low, difference.high) == (0, 0, 0)


def test_pairing_takes_the_difficulty_out() -> None:
    difficulty = RNG.normal(0, 10, 500)
    a, b = difficulty + RNG.normal(1, 1, 500), difficulty
    difference = mean_difference(a, b, seed=1)
    assert difference.mean == pytest.approx(np.mean(a - b))
    assert 0.5 < difference.low < difference.mean < difference.high < 1.5
    assert bootstrap_interval(a, seed=1)[0] < bootstrap_interval(b, seed=1)[1]  # which alone show nothing
    other = mean_difference(b, a, seed=1)
    assert other.mean == -difference.mean and other.high < 0


def test_a_difference_by_cluster_is_less_sure() -> None:
    images = [f"image {i // 4}" for i in range(400)]
    a = np.repeat(RNG.normal(0, 1, 100), 4)
    alone, together = (mean_difference(a, np.zeros(400), seed=1, clusters=c) for c in (None, images))
    assert together.high - together.low > 1.6 * (alone.high - alone.low)


@pytest.mark.parametrize("values", [[], [[1.0, 2.0]], [1.0, float("nan")]])
def test_what_has_no_interval_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        bootstrap_interval(values, seed=1)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="same question"):
        mean_difference([1, 2], [1], seed=1)
    with pytest.raises(ValueError, match="3 clusters for 2 values"):
        bootstrap_interval([1, 2], seed=1, clusters=["a", "b", "c"])


def test_few_losses_do_not_make_sure() -> None:
    """At most 5 % of all draws confirm a setting that loses more than the budget."""
    rng = np.random.default_rng(0)
    images = [str(i) for i in range(250)]
    for expected_losses in (2, 4.05, 7.05):
        rate = expected_losses / 250
        confirmed = 0
        for _ in range(400):
            differences = -(rng.random(250) < rate).astype(float)
            low = differences.mean() - unseen_losses(differences, images)
            confirmed += low >= -0.999 * rate
        assert confirmed <= 0.05 * 400


def test_images_needed_without_a_loss() -> None:
    for budget in (0.01, 0.05, 0.2):
        needed = images_needed(budget)
        images = [str(i) for i in range(needed)]
        assert unseen_losses(np.zeros(needed), images) <= budget + 1e-12
        assert unseen_losses(np.zeros(needed - 1), images[:-1]) > budget
