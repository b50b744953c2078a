import pytest

from catp.calibration.significance.mcnemar import mcnemar_exact


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        (0, 0, 1.0),  # nothing tells the two apart
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (6, 0, 2 / 64),
        (1, 9, 2 * (1 + 10) / 1024),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),
        (3, 4, 1.0),  # twice 1 + 7 + 21 + 35 of 128
    ],
)
def test_it_is_the_value_worked_out_by_hand(better: int, worse: int, expected: float) -> None:
    assert mcnemar_exact(better, worse) == mcnemar_exact(worse, better) == expected


def test_it_is_scipys_binomial_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    for better in (0, 1, 7, 40, 300):
        for worse in (0, 2, 9, 41, 333):
            if better + worse:
                wanted = stats.binomtest(better, better + worse, 0.5).pvalue
                assert mcnemar_exact(better, worse) == pytest.approx(wanted, rel=1e-9)


def test_many_questions_do_not_overflow() -> None:
    # By the normal limit: 0.5 standard deviations of sqrt(20,000) / 2 apart.
    assert mcnemar_exact(10_035, 9_965) == pytest.approx(0.6256, abs=0.001)
    assert mcnemar_exact(20_000, 0) == 0


def test_counts_are_not_negative() -> None:
    with pytest.raises(ValueError, match="better -1 and worse 2"):
        mcnemar_exact(-1, 2)
