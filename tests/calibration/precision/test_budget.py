"""What a calibration may cost, and how many pictures it takes to show it."""

import numpy as np
import pytest

from catp.calibration.accuracy.statistics import unseen_losses
from catp.calibration.precision.budget import Budget, BudgetExceeded, counted, most_sensitive
from catp.calibration.precision.report import PrecisionReport
from catp.calibration.precision.search.sensitivity import LayerError
from catp.runtime import UsageError
from catp.runtime.bundle.manifest import AccuracyChange, ModelSpec


def change(low: float, difference: float = 0.0) -> AccuracyChange:
    return AccuracyChange(ratio=0.5, before=1, after=1 + difference, difference=difference, interval_95=(low, 1))


def same(pictures: int) -> float:
    """The lower end of the interval where none of so many pictures lost an answer."""
    return -unseen_losses(np.zeros(pictures), [str(i) for i in range(pictures)])


def test_an_interval_that_reaches_half_of_the_answers_shows_nothing() -> None:
    budget = Budget(0.01)
    assert budget.is_shown_by([change(-0.5), change(-0.01)]) and budget.is_shown_by([change(0.02)])
    assert not budget.is_shown_by([change(-0.01), change(-0.51)])
    assert not Budget(0.49).is_shown_by([change(-0.51)]) and Budget(0.5).is_shown_by([change(-1.0)])


@pytest.mark.parametrize(("drop", "fewest"), [(0.0, 4), (0.01, 4), (0.49, 4), (0.5, 1), (0.9, 1)])
def test_so_few_pictures_that_nothing_could_be_shown_are_refused(drop: float, fewest: int) -> None:
    budget = Budget(drop)
    for pictures in range(1, 12):
        if pictures >= fewest:
            budget.check_pictures("mine", 50, pictures)
            assert budget.is_shown_by([change(same(pictures))])
        else:
            assert not budget.is_shown_by([change(same(pictures))])
            with pytest.raises(UsageError, match=f"data mine: .* 50 questions about {pictures} picture.*{fewest}"):
                budget.check_pictures("mine", 50, pictures)


def test_doubts_are_counted_in_pictures() -> None:
    budget = Budget(0.01)
    assert budget.doubts([change(-0.01), change(0.3)], 500, 400) is None
    text = budget.doubts([change(-0.01), change(same(5))], 20, 5)
    assert text is not None and text.startswith("20 questions about 5 pictures leave open whether it costs up to 43.4 ")
    assert "ask about more pictures" in text and "381 of which none loses an answer show" in text
    assert same(381) >= -0.01 > same(380)
    # Where there were enough of them, but answers changed, no number is promised.
    more = budget.doubts([change(-0.02)], 800, 400)
    assert more is not None and "400 pictures" in more and "of which none" not in more
    assert "of which none" not in str(Budget(0.0).doubts([change(-0.02)], 800, 400))
    assert counted(1, 1) == "1 question about 1 picture" and counted(2, 3) == "2 questions about 3 pictures"


def test_advice_names_layers_as_exclude_takes_them() -> None:
    errors = tuple(LayerError("vision_encoder", f"layers.{i}.fc", error, 1.0) for i, error in enumerate((np.inf, 2, 1)))
    model = ModelSpec(id="m", family="blip-2")
    report = PrecisionReport(model=model, max_accuracy_drop=0.01, min_kept_overlap=0.9, errors=errors, trials=())
    advice = most_sensitive(report, 2)
    assert advice == " or more layers (--exclude 'vision_encoder: layers.0.fc' --exclude 'vision_encoder: layers.1.fc')"
    assert advice in str(BudgetExceeded("it costs too much", report, advice))
    assert most_sensitive(report.model_copy(update={"errors": ()})) == ""
    # JSON has no infinite numbers, and they come back all the same.
    text = report.model_dump_json()
    assert '"Infinity"' in text and PrecisionReport.model_validate_json(text) == report
