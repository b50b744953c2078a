"""A schedule, a ratio beside it and the rule, chosen on the searching half: of one work the most accurate, of all
the cheapest within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from catp.calibration.data.dataset import DataSet, VqaExample
from catp.calibration.encoder.answering import Answered, Asked, answer_all
from catp.calibration.encoder.costs import answers_gflops
from catp.calibration.encoder.report import EncoderReport, EncoderScore, EncoderSetting, make_report
from catp.calibration.encoder.shapes import Shape, candidates
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline


@dataclass(frozen=True)
class Wanted:
    """The shares and ratios that are chosen among."""

    shares: tuple[float, ...]  # of the dense encoder's work
    ratios: tuple[float | None, ...]  # ascending, of query tokens left out; None: the bundle's default
    dense_ratio: float | None  # at which the dense encoder is asked

    @property
    def pairs(self) -> int:
        return len(self.shares) * len(self.ratios)


@dataclass(frozen=True)
class Searched:
    """Everything that was asked on the searching half, the dense encoder first, and what is the best of it."""

    report: EncoderReport
    pairs: tuple[EncoderScore, ...]  # the most accurate schedule of each share, at each ratio
    even: Mapping[tuple[int, ...], EncoderSetting]  # by the schedule that is preferred: the even one of the same work

    def even_beside(self, setting: EncoderSetting) -> EncoderSetting:
        """The even schedule of the same work at the same ratio."""
        assert setting.kept_tokens is not None
        return self.even[setting.kept_tokens].model_copy(update={"ratio": setting.ratio})


def cheapest(found: Sequence[Searched], budget: float) -> tuple[int, EncoderScore] | None:
    """The place in `found` of the best rule, and its pair with the least work of those within the budget.

    Rules leave slightly different numbers of tokens for one share, so they are compared share by share: of each pair of
    share and ratio the most accurate rule stands for it, of equally accurate ones the first.

    Args:
        found: by rule, each with the same pairs of share and ratio in the same order.
        budget: of 1, what a pair may lose with confidence. A single pair is not chosen, and so it is never left out:
            the other half judges it.
    """
    alone = len(found) == 1 and len(found[0].pairs) == 1
    best = []
    for pairs in zip(*(one.pairs for one in found), strict=True):
        within = [(place, pair) for place, pair in enumerate(pairs) if pair.low >= -budget or alone]
        if within:
            best.append(max(within, key=lambda of: of[1].accuracy))
    return min(best, key=lambda of: (of[1].answer_gflops or of[1].gflops, -of[1].accuracy), default=None)


def search(
    pipeline: Pipeline,
    reference: Pipeline,
    asked: DataSet,
    questions: Callable[[], Iterable[VqaExample]],
    wanted: Wanted,
    seed: int,
    batch_size: int,
    advance: Callable[[int], None] = lambda done: None,
) -> Searched:
    """Ask every question with the dense encoder, and with every candidate for each share.

    Candidates are compared at the smallest ratio, where the language model sees most of what they leave; the best one
    of each share is then asked at the other ratios.

    Args:
        reference: of the dense bundle.
        asked: the data, for the report.
        questions: called for each pass over the searching half.
        advance: called with the number of questions just done, in each of the passes.

    Raises:
        UsageError: no schedule leaves a share.
        CatpError: no question could be asked.
    """
    spec = pipeline.manifest.encoder_pruning
    assert spec is not None
    shapes = [(share, shape) for share in wanted.shares for shape in candidates(spec, share)]
    least, *others = wanted.ratios
    settings = [dense_setting(wanted), *(setting_of(share, shape, least) for share, shape in shapes)]
    first = Asked(reference, EncoderWish(), wanted.dense_ratio)

    def answered(of: Sequence[EncoderSetting], before: Sequence[Asked] = ()) -> Answered:
        chosen = [Asked(pipeline, EncoderWish(kept_tokens=one.kept_tokens), one.ratio) for one in of]
        return answer_all(questions(), [*before, *chosen], asked.metric, batch_size, advance)

    found = answered(settings[1:], [first])
    accuracy = found.right.mean(0)
    best = []
    for share in wanted.shares:
        # Of equally accurate ones the first, which differs least from the even one.
        place = max((n for n, (of, _) in enumerate(shapes, 1) if of == share), key=lambda n: accuracy[n])
        best.append((place, *shapes[place - 1]))
    places = [place for place, _, _ in best]
    if others:
        more = [setting_of(share, shape, ratio) for ratio in others for _, share, shape in best]
        places += range(len(settings), len(settings) + len(more))
        settings += more
        found = found.beside(answered(more))
    work = answers_gflops(pipeline, found) if wanted.pairs > 1 else None
    report = make_report(pipeline.manifest, asked, seed, settings, found, work)
    return Searched(
        report,
        tuple(report.scores[place] for place in places),
        {shape.kept_tokens: setting_of(share, candidates(spec, share)[0], least) for _, share, shape in best},
    )


def dense_setting(wanted: Wanted) -> EncoderSetting:
    return EncoderSetting(name="dense", ratio=wanted.dense_ratio)


def setting_of(share: float, shape: Shape, ratio: float | None) -> EncoderSetting:
    return EncoderSetting(name=f"{share:g}: {shape.name}", kept_tokens=shape.kept_tokens, ratio=ratio)
