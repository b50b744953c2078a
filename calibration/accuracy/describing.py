"""CIDEr-D of captions, beside how often they are what somebody wrote."""

from __future__ import annotations

from collections.abc import Iterable

from catp.calibration.accuracy.predictions import Prediction
from catp.calibration.accuracy.report import AccuracyReport
from catp.calibration.accuracy.statistics import bootstrap_interval
from catp.calibration.data.cider import Cider
from catp.calibration.data.dataset import VqaExample

PERCENT = 100
"""Papers give a hundred times the mean."""


def with_cider(
    report: AccuracyReport, predictions: Iterable[Prediction], asked: Iterable[VqaExample]
) -> AccuracyReport:
    """The report, with CIDEr-D of each setting.

    Sequences of words weigh by how many of the questions that were asked have them among their answers. Intervals are
    bootstrapped over images, with these weights.

    Args:
        predictions: of the report, in the order of `asked`.
    """
    pairs = [(found, question) for found, question in zip(predictions, asked, strict=True) if found.error is None]
    cider = Cider([question.answers for _, question in pairs])
    images = [question.image_key for _, question in pairs]
    scores = []
    for place, score in enumerate(report.scores):
        values = PERCENT * cider.scores([found.answers[place] for found, _ in pairs])
        interval = bootstrap_interval(values, report.evaluation.seed, clusters=images)
        scores.append(score.model_copy(update={"cider": float(values.mean()), "cider_interval_95": interval}))
    return report.model_copy(update={"scores": tuple(scores)})
