import numpy as np
import pytest

from catp.calibration.significance.holm import holm


def test_it_is_the_value_worked_out_by_hand() -> None:
    # Sorted: 0.005 x 4, 0.01 x 3, 0.03 x 2, 0.04 x 1, which is not corrected to less than the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_one_comparison_needs_no_correction_and_none_is_none() -> None:
    assert holm([0.04]) == [0.04] and holm([]) == []


def test_nothing_is_above_one_and_ties_are_alike() -> None:
    assert holm([0.6, 0.9, 0.6]) == [1.0, 1.0, 1.0]
    assert holm([0.01, 0.01, 0.5]) == pytest.approx([0.03, 0.03, 0.5])


def test_it_rejects_as_the_step_down_procedure_says() -> None:
    """Down the sorted list while p is at most level / (m - rank), to the first that isn't."""
    rng = np.random.default_rng(4)
    for _ in range(200):
        p = rng.random(6) ** 4
        rejected = set()
        for rank, place in enumerate(np.argsort(p)):
            if p[place] > 0.05 / (6 - rank):
                break
            rejected.add(int(place))
        assert {place for place, q in enumerate(holm(p.tolist())) if q <= 0.05} == rejected


def test_the_chance_of_one_wrong_finding_is_kept() -> None:
    rng = np.random.default_rng(5)
    wrong = np.mean([min(holm(rng.random(10).tolist())) < 0.05 for _ in range(4000)])
    assert 0.035 < wrong < 0.062  # uncorrected: 0.40


def test_what_is_no_probability_is_refused() -> None:
    with pytest.raises(ValueError, match=r"p-value 1\.5"):
        holm([0.5, 1.5])
    with pytest.raises(ValueError, match="p-value nan"):
        holm([float("nan")])
