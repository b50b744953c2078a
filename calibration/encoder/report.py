"""The findings of catp-calibrate schedule, and of catp-eval where it compares schedules."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from pydantic import Field

from catp.calibration.accuracy.statistics import bootstrap_interval, lowest_difference, mean_difference, wilson_interval
from catp.calibration.data.dataset import DataSet
from catp.calibration.data.metrics import Metric
from catp.calibration.encoder.answering import Answered
from catp.calibration.significance.comparisons import Pair, Tested, TestName, compare_pairs, name_test
from catp.runtime.bundle.generation_settings import GREEDY, GenerationSettings
from catp.runtime.bundle.manifest import Manifest, Positions
from catp.runtime.bundle.strict import Strict


class EncoderSetting(Strict):
    """The tokens that an encoder kept: by counts or a temperature, or all of a dense one; and those after the vote."""

    name: str = Field(description="for people: dense, dynamic, schedule, ...")
    kept_tokens: tuple[int, ...] | None = None
    temperature: float | None = None
    ratio: float | None = Field(
        default=None, description="of query tokens that were removed; none: nothing votes, or what the bundle says"
    )
    keep_mass: float | None = Field(default=None, description="instead: the share of the votes that was kept")

    @property
    def amount(self) -> str:
        """The query tokens alone, in words; nothing where the setting doesn't say."""
        if self.keep_mass is not None:
            return f"mass {self.keep_mass:g}"
        return "" if self.ratio is None else f"ratio {self.ratio:g}"


class PairedDifference(Tested):
    """Accuracy in one setting minus that in another, question by question."""

    against: EncoderSetting
    difference: float = Field(description="negative: accuracy was lost")
    interval_95: tuple[float, float]


class EncoderScore(Tested):
    """Accuracy with an encoder that keeps so many tokens; the test is of the difference to the first setting."""

    setting: EncoderSetting
    share: float = Field(description="of the dense encoder's work, mean over pictures")
    gflops: float
    answer_gflops: float | None = Field(
        default=None,
        description="of image side and prefill together, for a prompt of the questions' mean length, or all that a "
        "text is scored by; where the graph counts tokens, for each layer's mean count",
    )
    accuracy: float = Field(description="mean over questions, 0 to 1")
    interval_95: tuple[float, float]
    difference: float = Field(description="to the first setting, paired by question; negative: accuracy was lost")
    difference_95: tuple[float, float]
    low: float = Field(description="its lower end, with losses that few pictures did not show")
    tokens_kept: float | None = Field(
        default=None, description="query tokens after the vote, mean over pictures; none: nothing votes"
    )
    cider: float | None = Field(default=None, description="CIDEr-D of captions, a hundred times the mean")
    cider_interval_95: tuple[float, float] | None = None
    same_encoder: PairedDifference | None = Field(
        default=None, description="to the first amount of query tokens with this encoder; none: it is that, or alone"
    )
    same_amount: PairedDifference | None = Field(
        default=None, description="to the first encoder with this amount of query tokens; none: likewise"
    )


class EncoderReport(Strict):
    """Accuracy of one checkpoint at several settings of its encoder, on the same questions."""

    model: str
    rule: str
    merge: str
    layers: tuple[int, ...]
    precision: str
    method: str | None = Field(default=None, description="by which query tokens were voted for; none: nothing votes")
    positions: Positions | None = Field(default=None, description="of kept query tokens")
    data: str
    metric: Metric
    seed: int
    questions: int
    images: int
    skipped: int
    gflops_dense: float
    prompt_tokens: float = Field(description="mean length of the prompts")
    prompt_template: str | None = Field(default=None, description="none: not recorded, or of statements as they are")
    generation: GenerationSettings = Field(default=GREEDY, description="the seed of what is drawn is the report's")
    max_new_tokens: int | None = Field(default=None, description="none: the bundle's")
    answers: str | None = Field(default=None, description="SHA-256 of those that were ranked; none: generated")
    scores: tuple[EncoderScore, ...]
    test: TestName | None = Field(default=None, description="of differences, in pairs by question")
    comparisons: int | None = Field(default=None, description="pairs of settings, which are corrected together")


class ScheduleReport(EncoderReport):
    """The confirmation of a schedule, or its failure, and the search before it on other images."""

    search: EncoderReport | None = Field(default=None, description="every candidate; none where tokens were counted")
    other_rules: tuple[EncoderReport, ...] = Field(
        default=(), description="the same search in bundles of other rules, none of which was chosen"
    )

    @classmethod
    def without_confirmation(cls, search: EncoderReport, others: Sequence[EncoderReport] = ()) -> ScheduleReport:
        """The report of a search that found nothing to confirm: no question of the other half was asked."""
        nothing = {"questions": 0, "images": 0, "skipped": 0, "prompt_tokens": 0.0, "scores": ()}
        nothing |= {"test": None, "comparisons": None}
        return cls(**{**dict(search), **nothing}, search=search, other_rules=tuple(others))


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
        method=manifest.vote.method if manifest.vote else None,
        positions=manifest.vote.positions if manifest.vote else None,
        data=asked.name,
        metric=asked.metric,
        seed=seed,
        questions=len(answered.right),
        images=len(set(answered.images)),
        skipped=answered.skipped,
        gflops_dense=spec.gflops_dense,
        prompt_tokens=answered.prompt_tokens,
        scores=score(answered, settings, spec.gflops_dense, seed, answer_gflops),
        test=name_test(answered.right, answered.images) if len(settings) > 1 else None,
        comparisons=len(set(_pairs(settings))),
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
    tested = compare_pairs(answered.right, answered.images, _pairs(settings), seed)

    def against(place: int, other: int | None) -> PairedDifference | None:
        """The difference to another setting, if there is one to compare with."""
        if other is None:
            return None
        right, left = answered.right[:, place], answered.right[:, other]
        found = mean_difference(right, left, seed, clusters=answered.images)
        return PairedDifference(
            against=settings[other],
            difference=found.mean,
            interval_95=(found.low, found.high),
            **dict(tested[place, other]),
        )

    found = []
    in_all = [None] * len(settings) if answer_gflops is None else answer_gflops
    columns = zip(settings, answered.right.T, answered.gflops, in_all)
    for place, (setting, right, gflops, of_answer) in enumerate(columns):
        mean = float(right.mean())
        binary = np.isin(right, (0.0, 1.0)).all()
        if independent and binary:
            interval = wilson_interval(float(right.sum()), len(right))
        else:
            interval = bootstrap_interval(right, seed, clusters=answered.images)
        difference, low = lowest_difference(right, first, answered.images, seed)
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
                tokens_kept=None if answered.tokens_kept is None else float(answered.tokens_kept[place]),
                same_encoder=against(place, _alike(settings, place, _encoder)),
                same_amount=against(place, _alike(settings, place, _amount)),
                **dict(tested.get((place, 0), Tested())),
            )
        )
    return tuple(found)


def _pairs(settings: Sequence[EncoderSetting]) -> list[Pair]:
    """Every comparison, by places: with the first setting, with the first of this encoder, of this amount."""
    found: list[Pair] = []
    for place in range(1, len(settings)):
        others = (0, _alike(settings, place, _encoder), _alike(settings, place, _amount))
        found += [(place, other) for other in others if other is not None]
    return found


def _alike(settings: Sequence[EncoderSetting], place: int, of: Callable[[EncoderSetting], object]) -> int | None:
    """The first setting that is like this one in one respect; None: it is that, or there is but one respect."""
    grid = all(len({respect(setting) for setting in settings}) > 1 for respect in (_encoder, _amount))
    other = [of(setting) for setting in settings].index(of(settings[place]))
    return other if grid and other != place else None


def _encoder(setting: EncoderSetting) -> object:
    return setting.name, setting.kept_tokens, setting.temperature


def _amount(setting: EncoderSetting) -> object:
    return setting.ratio, setting.keep_mass


def describe_kept(kept_tokens: Sequence[int]) -> str:
    return ",".join(map(str, kept_tokens))
