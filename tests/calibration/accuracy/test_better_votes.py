"""What docs/accuracy.md claims of the duplicate-aware methods holds through the exported graphs."""

from pathlib import Path

import pytest

from catp.calibration.accuracy.evaluation import evaluate
from catp.calibration.accuracy.settings import Grid
from catp.calibration.data import open_data
from catp.runtime import Pipeline


@pytest.mark.parametrize("method", ["coverage", "distinct"])
def test_duplicate_aware_votes_beat_rank_points_and_chance(method: str, diagnostics_bundle: Path) -> None:
    grid = Grid((method, "catp", "random"), (0.5, 0.75), ("original",))
    report = evaluate(Pipeline.load(diagnostics_bundle), open_data("demo"), grid, seed=77, limit=250)
    accuracy = {(score.method, score.ratio): score.accuracy for score in report.scores}
    assert accuracy[method, 0.5] >= 0.98 and accuracy[method, 0.75] >= 0.96
    differences = [found for found in report.differences if found.method == method]
    assert len(differences) == 4
    assert all(found.difference > 0 and found.finding == "difference shown" for found in differences)
