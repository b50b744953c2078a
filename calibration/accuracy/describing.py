"""CIDEr-D of captions, beside how often they are what somebody wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from catp.calibration.accuracy.predictions import Prediction
from catp.calibration.accuracy.report import AccuracyReport, Interval
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
    questions = [question for _, question in pairs]
    texts = [[found.answers[place] for found, _ in pairs] for place in range(len(report.scores))]
    scores = [
        score.model_copy(update={"cider": mean, "cider_interval_95": interval})
        for score, (mean, interval) in zip(report.scores, caption_scores(questions, texts, report.evaluation.seed))
    ]
    return report.model_copy(update={"scores": tuple(scores)})


def caption_scores(
    questions: Sequence[VqaExample], texts: Sequence[Sequence[str]], seed: int
) -> list[tuple[float, Interval]]:
    """CIDEr-D in each setting, a hundred times the mean, with its interval.

    Args:
        texts: of each setting, a caption for each question.
        seed: of the intervals.
    """
    cider = Cider([question.answers for question in questions])
    images = [question.image_key for question in questions]
    found = []
    for of_setting in texts:
        values = PERCENT * cider.scores(of_setting)
        found.append((float(values.mean()), bootstrap_interval(values, seed, clusters=images)))
    return found
