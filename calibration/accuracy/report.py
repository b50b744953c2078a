"""The report of an evaluation: accuracies with intervals, and which differences are more than noise."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from catp.calibration.accuracy.predictions import Evaluation, Prediction
from catp.calibration.accuracy.settings import RANDOM
from catp.calibration.accuracy.statistics import bootstrap_interval, mean_difference, wilson_interval
from catp.calibration.significance.comparisons import Pair, Tested, TestName, compare_pairs, name_test
from catp.runtime.bundle.manifest import Manifest, ModelSpec, Positions
from catp.runtime.bundle.strict import Strict

BASELINES = ("catp", RANDOM)
"""What every method is compared with: the paper's, and chance."""

NAMED = 100
"""Questions that were not asked are all counted; the report names this many of them."""

Interval = tuple[float, float]


class Share(Strict):
    """Accuracy on some of the questions."""

    questions: int
    accuracy: float = Field(description="mean over questions, 0 to 1")
    interval_95: Interval


class Score(Share):
    """Accuracy in one setting; either `ratio` or `keep_mass` says how much was kept."""

    method: str
    positions: Positions
    ratio: float | None
    keep_mass: float | None
    tokens_kept: float = Field(description="mean over questions; of videos, of a frame")
    by_answer_type: dict[str, Share]
    cider: float | None = Field(default=None, description="CIDEr-D of captions, a hundred times the mean")
    cider_interval_95: Interval | None = None


class Difference(Tested):
    """Accuracy of a method minus that of another, on the same questions at the same ratio and positions."""

    method: str
    against: str
    positions: Positions
    ratio: float
    difference: float
    interval_95: Interval = Field(description="of this one alone, not corrected for how many are looked at")


class Loss(Tested):
    """Accuracy in a setting minus that at the lowest ratio, on the same questions by the same method and positions."""

    method: str
    positions: Positions
    ratio: float | None
    keep_mass: float | None
    against_ratio: float
    difference: float = Field(description="negative: pruning costs")
    interval_95: Interval = Field(description="of this one alone, not corrected for how many are looked at")


class Skipped(Strict):
    """A question that could not be asked, and why."""

    id: str
    image_key: str
    reason: str


class AccuracyReport(Strict):
    """The whole of report.json."""

    schema_version: Literal[1] = 1
    model: ModelSpec
    precision: str = Field(description="of the bundle, and what was quantised")
    method: str = Field(description="the bundle's own")
    method_options: dict[str, Any]
    num_query_tokens: int = Field(description="or image tokens, of a bundle that votes for none")
    evaluation: Evaluation
    interval: Literal["Wilson", "bootstrap over images"] = Field(
        description="of accuracies (Wilson's by images where all are right or all wrong); of differences: bootstrap"
    )
    questions: int = Field(description="asked")
    images: int
    skipped: int = Field(description="questions that could not be asked; they count nowhere else")
    skipped_first: tuple[Skipped, ...]
    scores: tuple[Score, ...]
    differences: tuple[Difference, ...]
    losses: tuple[Loss, ...] = Field(default=(), description="what pruning more costs")
    test: TestName | None = Field(default=None, description="of differences and losses, in pairs by question")
    comparisons: int | None = Field(default=None, description="differences and losses, which are corrected together")

    def is_full(self, score: Score) -> bool:
        """Whether nothing was pruned, so that neither method nor positions matter."""
        return score.tokens_kept == self.num_query_tokens


def make_report(evaluation: Evaluation, predictions: Iterable[Prediction], manifest: Manifest) -> AccuracyReport:
    """The report on all predictions; it has no scores where no question could be asked."""
    results = _read(predictions, len(evaluation.grid.settings()))
    # Wilson's interval is for what is right or wrong, question by question, each about an image of its own.
    independent = evaluation.metric == "exact match" and results.images == len(results.image)
    scores = tuple(_scores(evaluation, results, independent)) if len(results.image) else ()
    methods = _method_pairs(scores, manifest.tokens)
    ratios = _ratio_pairs(scores, manifest.tokens)
    tested = compare_pairs(results.accuracy, results.image, [*methods, *ratios], evaluation.seed)
    return AccuracyReport(
        model=manifest.model,
        precision=manifest.precision_label,
        method=manifest.vote.method if manifest.vote else "none",
        method_options=manifest.vote.options if manifest.vote else {},
        num_query_tokens=manifest.tokens,
        evaluation=evaluation,
        interval="Wilson" if independent else "bootstrap over images",
        questions=len(results.image),
        images=results.images,
        skipped=results.skipped,
        skipped_first=tuple(results.skipped_first),
        scores=scores,
        differences=tuple(
            Difference(
                method=scores[place].method,
                against=scores[other].method,
                positions=scores[place].positions,
                ratio=scores[place].ratio or 0.0,  # which pairs of methods have
                **_paired(evaluation, results, (place, other), tested),
            )
            for place, other in methods
        ),
        losses=tuple(
            Loss(
                method=scores[place].method,
                positions=scores[place].positions,
                ratio=scores[place].ratio,
                keep_mass=scores[place].keep_mass,
                against_ratio=scores[other].ratio or 0.0,
                **_paired(evaluation, results, (place, other), tested),
            )
            for place, other in ratios
        ),
        test=name_test(results.accuracy, results.image) if tested else None,
        comparisons=len(tested),
    )


@dataclass(frozen=True)
class _Results:
    """The predictions as statistics read them: one number per question and setting, and what questions share."""

    accuracy: np.ndarray  # float64 [questions, settings]
    tokens_kept: np.ndarray  # float64 [settings] mean
    image: list[int]  # [questions] number of the image
    answer_type: np.ndarray  # str [questions]
    skipped: int
    skipped_first: list[Skipped]

    @property
    def images(self) -> int:
        return len(set(self.image))


def _read(predictions: Iterable[Prediction], settings: int) -> _Results:
    accuracy = array("d")
    tokens_kept = np.zeros(settings)
    image: list[int] = []
    numbers: dict[str, int] = {}
    answer_type: list[str] = []
    skipped: list[Skipped] = []
    skipped_count = 0
    for prediction in predictions:
        if prediction.error is not None:
            skipped_count += 1
            if len(skipped) < NAMED:
                skipped.append(Skipped(id=prediction.id, image_key=prediction.image_key, reason=prediction.error))
            continue
        accuracy.extend(prediction.accuracy)
        tokens_kept += np.array(prediction.num_kept) / prediction.frames
        image.append(numbers.setdefault(prediction.image_key, len(numbers)))
        answer_type.append(prediction.answer_type)
    return _Results(
        np.frombuffer(accuracy).reshape(-1, settings),
        tokens_kept / max(1, len(image)),
        image,
        np.array(answer_type),
        skipped_count,
        skipped,
    )


def _scores(evaluation: Evaluation, results: _Results, independent: bool) -> Iterator[Score]:
    image = np.array(results.image)
    kinds = {str(kind): results.answer_type == kind for kind in np.unique(results.answer_type)}

    def share(values: np.ndarray, images: np.ndarray) -> dict[str, Any]:
        accuracy = float(values.mean())
        if independent or accuracy in (0, 1):
            # Resamples of what is all right or all wrong can't differ, which looks surer than it is.
            drawn = len(np.unique(images))
            interval = wilson_interval(accuracy * drawn, drawn)
        else:
            interval = bootstrap_interval(values, evaluation.seed, clusters=images.tolist())
        return {"questions": len(values), "accuracy": accuracy, "interval_95": interval}

    for setting, values, kept in zip(evaluation.grid.settings(), results.accuracy.T, results.tokens_kept):
        yield Score(
            method=setting.method,
            positions=setting.positions,
            ratio=setting.ratio,
            keep_mass=setting.keep_mass,
            tokens_kept=float(kept),
            by_answer_type={kind: Share(**share(values[of], image[of])) for kind, of in kinds.items()},
            **share(values, image),
        )


def _method_pairs(scores: tuple[Score, ...], num_query_tokens: int) -> list[Pair]:
    """Methods and the baselines at one ratio; by a share of the votes, they keep differently many tokens."""
    column = {(score.method, score.positions, score.ratio): index for index, score in enumerate(scores)}
    pairs = []
    for index, score in enumerate(scores):
        for against in BASELINES:
            other = column.get((against, score.positions, score.ratio))
            if score.ratio is None or other in (None, index) or score.tokens_kept == num_query_tokens:
                continue
            if (score.method, against) != (RANDOM, "catp"):  # the same as catp against random
                pairs.append((index, other))
    return pairs


def _ratio_pairs(scores: tuple[Score, ...], num_query_tokens: int) -> list[Pair]:
    """Every setting and that of its method and positions at the lowest ratio, but for those that keep all as well."""
    lowest = min((score.ratio for score in scores if score.ratio is not None), default=None)
    first = {(score.method, score.positions): index for index, score in enumerate(scores) if score.ratio == lowest}
    pairs = []
    for index, score in enumerate(scores):
        other = first.get((score.method, score.positions))
        if other not in (None, index) and score.tokens_kept != num_query_tokens:
            pairs.append((index, other))
    return pairs


def _paired(evaluation: Evaluation, results: _Results, pair: Pair, tested: dict[Pair, Tested]) -> dict[str, Any]:
    """Difference and interval of a pair of settings, and what is shown of it."""
    left, right = (results.accuracy[:, place] for place in pair)
    found = mean_difference(left, right, evaluation.seed, clusters=results.image)
    return {"difference": found.mean, "interval_95": (found.low, found.high), **dict(tested[pair])}
