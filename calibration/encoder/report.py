"""The findings of catp-calibrate schedule, and of catp-eval where it compares schedules."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from catp.calibration.accuracy.statistics import bootstrap_interval, mean_difference, unseen_losses, wilson_interval
from catp.calibration.data.dataset import DataSet
from catp.calibration.data.metrics import Metric
from catp.calibration.encoder.answering import Answered
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.bundle.strict import Strict


class EncoderSetting(Strict):
    """The tokens that an encoder kept: by one of these, or none of a dense one."""

    name: str = Field(description="for people: dense, dynamic, schedule, ...")
    kept_tokens: tuple[int, ...] | None = None
    temperature: float | None = None
    ratio: float | None = Field(
        default=None, description="of query tokens left out after it; none: what the bundle says, or nothing votes"
    )


class EncoderScore(Strict):
    """Accuracy with an encoder that keeps so many tokens."""

    setting: EncoderSetting
    share: float = Field(description="of the dense encoder's work, mean over pictures")
    gflops: float
    answer_gflops: float | None = Field(
        default=None, description="of image side and prefill together, for a prompt of the questions' mean length"
    )
    accuracy: float = Field(description="mean over questions, 0 to 1")
    interval_95: tuple[float, float]
    difference: float = Field(description="to the first setting, paired by question; negative: accuracy was lost")
    difference_95: tuple[float, float]
    low: float = Field(description="its lower end, with losses that few pictures did not show")


class EncoderReport(Strict):
    """Accuracy of one checkpoint at several settings of its encoder, on the same questions."""

    model: str
    rule: str
    merge: str
    layers: tuple[int, ...]
    precision: str
    data: str
    metric: Metric
    seed: int
    questions: int
    images: int
    skipped: int
    gflops_dense: float
    prompt_tokens: float = Field(description="mean length of the prompts")
    scores: tuple[EncoderScore, ...]


class ScheduleReport(EncoderReport):
    """The confirmation of a schedule, or its failure, and the search before it on other images."""

    search: EncoderReport | None = Field(default=None, description="every candidate; none where tokens were counted")

    @classmethod
    def without_confirmation(cls, search: EncoderReport) -> ScheduleReport:
        """The report of a search that found nothing to confirm: no question of the other half was asked."""
        nothing = {"questions": 0, "images": 0, "skipped": 0, "prompt_tokens": 0.0, "scores": ()}
        return cls(**{**dict(search), **nothing}, search=search)


def make_report(
    manifest: Manifest,
    asked: DataSet,
    seed: int,
    settings: Sequence[EncoderSetting],
    answered: Answered,
    answer_gflops: Sequence[float] | None = None,
) -> EncoderReport:
    """The report on a bundle whose encoder prunes.

    Args:
        settings: in the order of `answered.right`'s columns; the others are compared with the first.
        seed: of the intervals.
        answer_gflops: of each setting, the work of a whole answer.
    """
    spec = manifest.encoder_pruning
    assert spec is not None
    return EncoderReport(
        model=manifest.model.id,
        rule=spec.rule,
        merge=spec.merge,
        layers=spec.layers,
        precision=manifest.precision_label,
        data=asked.name,
        metric=asked.metric,
        seed=seed,
        questions=len(answered.right),
        images=len(set(answered.images)),
        skipped=answered.skipped,
        gflops_dense=spec.gflops_dense,
        prompt_tokens=answered.prompt_tokens,
        scores=score(answered, settings, spec.gflops_dense, seed, answer_gflops),
    )


def score(
    answered: Answered,
    settings: Sequence[EncoderSetting],
    gflops_dense: float,
    seed: int,
    answer_gflops: Sequence[float] | None = None,
) -> tuple[EncoderScore, ...]:
    """Accuracies with their intervals, and differences to the first setting.

    Args:
        settings: in the order of `answered.right`'s columns.
        answer_gflops: of each, the work of a whole answer.
    """
    independent = len(set(answered.images)) == len(answered.images)
    first = answered.right[:, 0]
    found = []
    in_all = [None] * len(settings) if answer_gflops is None else answer_gflops
    for setting, right, gflops, of_answer in zip(settings, answered.right.T, answered.gflops, in_all):
        mean = float(right.mean())
        binary = np.isin(right, (0.0, 1.0)).all()
        if independent and binary:
            interval = wilson_interval(float(right.sum()), len(right))
        else:
            interval = bootstrap_interval(right, seed, clusters=answered.images)
        difference = mean_difference(right, first, seed, clusters=answered.images)
        low = min(difference.low, difference.mean - unseen_losses(right - first, answered.images))
        work = float(gflops) or gflops_dense
        found.append(
            EncoderScore(
                setting=setting,
                share=work / gflops_dense,
                gflops=work,
                answer_gflops=of_answer,
                accuracy=mean,
                interval_95=interval,
                difference=difference.mean,
                difference_95=(difference.low, difference.high),
                low=low,
            )
        )
    return tuple(found)


def describe_kept(kept_tokens: Sequence[int]) -> str:
    return ",".join(map(str, kept_tokens))
