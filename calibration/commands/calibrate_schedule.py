"""catp-calibrate schedule: how many image tokens each layer of a vision encoder keeps, for a share of its work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from catp.calibration.accuracy.evaluation import BATCH_SIZE
from catp.calibration.accuracy.statistics import images_needed
from catp.calibration.commands.source import is_bundle
from catp.calibration.data import open_data
from catp.calibration.data.dataset import DataSet
from catp.calibration.data.demo import DEMO_SEED
from catp.calibration.data.halves import half
from catp.calibration.encoder.answering import Asked, answer_all
from catp.calibration.encoder.costs import answers_gflops
from catp.calibration.encoder.counting import find_schedule
from catp.calibration.encoder.default import with_schedule
from catp.calibration.encoder.reference import check_reference, check_votes_alike
from catp.calibration.encoder.report import (
    EncoderReport,
    EncoderSetting,
    ScheduleReport,
    describe_kept,
    make_report,
)
from catp.calibration.encoder.search import Searched, Wanted, cheapest, dense_setting, search
from catp.calibration.encoder.tables import score_table
from catp.calibration.ratio.default import with_ratio
from catp.calibration.supported import check_data
from catp.runtime.bundle.encoder_pruning import EncoderPruningSpec, ScheduleConfirmation
from catp.runtime.bundle.encoder_schedules import even_schedule
from catp.runtime.bundle.folder import write_manifest
from catp.runtime.bundle.manifest import Manifest
from catp.runtime.commands.console import busy, console, print_json_line
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import check_file_output, write_file
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers import PROVIDERS


def calibrate_schedule(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE...",
            help="A bundle in the schedule form, whose manifest gets the schedule. Of several, exported by other rules "
            "from the same checkpoint, the best one gets it.",
        ),
    ],
    flops: Annotated[
        str,
        typer.Option(
            metavar="SHARE[,SHARE]",
            help="Share of the dense encoder's work that remains, such as 0.5; of several, the cheapest is chosen "
            "that stays within the budget.",
        ),
    ],
    against: Annotated[
        Path,
        typer.Option(
            metavar="BUNDLE",
            help="The same checkpoint, for comparison: dense, or in the dynamic form (madtp), which then also says how "
            "many tokens each layer keeps. Otherwise schedules of the same work are compared.",
        ),
    ],
    data: Annotated[str, typer.Option(metavar="demo|easy-vqa|FOLDER|JSONL", help="What to ask, as for catp-eval.")] = (
        "demo"
    ),
    max_accuracy_drop: Annotated[
        float, typer.Option(help="What pruning may cost, of 1, at the worse end of the 95 % interval.")
    ] = 0.02,
    ratio: Annotated[
        float | None,
        typer.Option(help="Ratio of query tokens left out, with both encoders. Default: the bundle's."),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="Ratios to try with each share, such as 0,0.25,0.5; the budget is then for both prunings together."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Number of questions, both halves together. Default: all.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Instead of a number: this part of the questions.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Pictures whose tokens are counted, at most.")] = 100,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the choice of questions, the halves, the intervals.")
    ] = DEMO_SEED,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = BATCH_SIZE,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    report: Annotated[Path | None, typer.Option(help="The report as a JSON file.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="The report as one line on standard output.")] = False,
) -> None:
    """Choose how many image tokens each layer keeps, for a share of the vision encoder's work.

    Schedules are chosen on one half of the images; the other half confirms that accuracy falls by no more than
    allowed. What is not confirmed changes nothing and exits 1.

    catp-calibrate schedule catp-bundle --flops 0.5 --against dense-bundle --data vqav2 --fraction 0.1

    catp-calibrate schedule by-tome by-cls --flops 0.5,0.35 --against dense-bundle --data vqav2
    """
    if not 0 < max_accuracy_drop < 1:
        raise UsageError(f"max accuracy drop {max_accuracy_drop}: of 1, so 0 < drop < 1, such as 0.02 for two points")
    shares = tuple(sorted(_numbers("flops", flops, "0.8,0.5"), reverse=True))
    if wrong := [share for share in shares if not 0 < share < 1]:
        raise UsageError(f"flops {wrong[0]:g}: a share of the encoder's work, above 0 and below 1")
    if ratio is not None and ratios is not None:
        raise UsageError("--ratio and --ratios: give one ratio for both encoders, or several to choose among")
    check_file_output("--report", report)
    for given in (*sources, against):
        if not is_bundle(str(given)):
            raise UsageError(f"{given}: no bundle; give a folder that catp-export wrote")
    asked = open_data(data).subset(limit, fraction, seed)
    with busy("load the bundles"):
        pipelines = [Pipeline.load(source, provider) for source in sources]
        reference = Pipeline.load(against, provider)
    check_data(reference.bundle, data, "catp-calibrate schedule")
    specs = [check_reference(one, reference) for one in pipelines]
    to_try = None if ratios is None else _numbers("ratios", ratios, "0,0.25,0.5")
    all_wanted = [_wanted(one, shares, ratio, to_try) for one in pipelines]
    _check_rules(sources, pipelines, all_wanted)
    for one, of_one in zip(pipelines, all_wanted):
        check_votes_alike(one, reference, of_one)
    place, wanted = 0, all_wanted[0]
    rules: list[Searched] = []
    if reference.manifest.encoder_pruning is None:
        rules = [_search(one, reference, asked, wanted, seed, batch_size) for one in pipelines]
        best = cheapest(rules, max_accuracy_drop)
        for source, found in zip(sources, rules):
            if len(rules) > 1:
                console.print(f"\n{escape(str(source))}: {found.report.rule}, merge {found.report.merge}")
            console.print(score_table(found.report, "searching", None if best is None else best[1]))
        if best is None:
            _keep(ScheduleReport.without_confirmation(rules[0].report, _reports(rules[1:])), report, json_output)
            raise _nothing_within(rules, max_accuracy_drop)
        place, chosen = best
        settings, compared = _against_even(pipelines[place], reference, wanted, rules[place], chosen.setting)
        source_text = f"{chosen.setting.name}, the most accurate of its work on half of {asked.name}"
        if wanted.pairs > 1:
            source_text += f"; the cheapest of {wanted.pairs} pairs of share and ratio within {max_accuracy_drop:g}"
        if len(rules) > 1:
            source_text += f"; the rule the best of {', '.join(_rule(found) for found in rules)}"
    else:
        if len(pipelines) > 1:
            raise UsageError(
                f"--against {against}: it counts tokens by one rule; give one bundle, or a dense one with --against"
            )
        if wanted.pairs > 1:
            raise UsageError(
                f"--against {against}: it counts tokens for one share of the work; give one --flops and no --ratios, "
                "or a dense bundle"
            )
        settings, compared, source_text = _count(pipelines[0], reference, specs[0], asked, wanted, seed, pictures)
    pipeline = pipelines[place]
    with _progress("confirmation", len(asked) // 2) as advance:
        answered = answer_all(half(asked, seed, "confirmation"), compared, asked.metric, batch_size, advance)
    work = answers_gflops(pipeline, answered) if wanted.pairs > 1 else None
    confirming = make_report(pipeline.manifest, asked, seed, settings, answered, work)
    searched, others = (rules[place].report, [*rules[:place], *rules[place + 1 :]]) if rules else (None, [])
    result = ScheduleReport(**dict(confirming), search=searched, other_rules=_reports(others))
    console.print(score_table(result, "confirming"))
    if result.skipped:
        console.print(f"[yellow]warning:[/] {result.skipped:,} questions could not be asked")
    _keep(result, report, json_output)
    _check(result, max_accuracy_drop)
    _apply(sources[place], pipeline.manifest, source_text, result, ratios is not None)


def _check_rules(sources: Sequence[Path], pipelines: Sequence[Pipeline], wanted: Sequence[Wanted]) -> None:
    """Raises UsageError where two bundles prune alike, or vote otherwise: their difference would not be the rule's."""
    first = pipelines[0].manifest.vote
    seen: dict[object, Path] = {}
    for source, pipeline, of_one in zip(sources, pipelines, wanted):
        spec, vote = pipeline.manifest.encoder_pruning, pipeline.manifest.vote
        assert spec is not None
        if (other := seen.setdefault((spec.rule, spec.merge, spec.layers), source)) is not source:
            raise UsageError(
                f"{other} and {source}: both prune by {spec.rule} ({spec.merge}) in layers "
                f"{', '.join(map(str, spec.layers))}; give one of them"
            )
        votes = [one and (one.method, one.options, one.positions) for one in (vote, first)]
        by_mass = [one and one.keep_mass for one in (vote, first)] if of_one.dense_ratio is None else []
        if of_one != wanted[0] or votes[0] != votes[1] or len(set(by_mass)) > 1:
            raise UsageError(
                f"{sources[0]} and {source}: their query tokens are voted for in other ways; export both with the same "
                "--method and --positions, and give --ratio"
            )


def _rule(found: Searched) -> str:
    return f"{found.report.rule} ({found.report.merge})"


def _reports(of: Sequence[Searched]) -> tuple[EncoderReport, ...]:
    return tuple(found.report for found in of)


def _numbers(name: str, text: str, example: str) -> tuple[float, ...]:
    try:
        return tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        raise UsageError(f"{name} {text!r}: give numbers separated by commas, such as {example}") from None


def _wanted(
    pipeline: Pipeline, shares: tuple[float, ...], ratio: float | None, ratios: Sequence[float] | None
) -> Wanted:
    """Raises UsageError where this bundle can't leave out query tokens so."""
    vote = pipeline.manifest.vote
    for one in (*([] if ratio is None else [ratio]), *(ratios or ())):
        pipeline.num_kept(one)
    if vote is None:
        # It was refused above unless it is 0, which leaves out nothing where there is nothing.
        return Wanted(shares, (None,), None)
    if ratios is not None:
        return Wanted(shares, tuple(sorted(ratios)), 0.0)
    if ratio is None and vote.keep_mass is not None:
        if len(shares) > 1:
            raise UsageError(
                f"flops {','.join(f'{share:g}' for share in shares)}: this bundle keeps a share of the votes "
                f"({vote.keep_mass:g}), so many tokens have no cost that could be compared; give --ratio or --ratios"
            )
        return Wanted(shares, (None,), None)
    fixed = vote.ratio if ratio is None else ratio
    return Wanted(shares, (fixed,), fixed)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)


def _search(
    pipeline: Pipeline, reference: Pipeline, asked: DataSet, wanted: Wanted, seed: int, batch_size: int
) -> Searched:
    passes = 2 if len(wanted.ratios) > 1 else 1
    with _progress("search", passes * len(asked) // 2) as advance:
        return search(
            pipeline, reference, asked, lambda: half(asked, seed, "search"), wanted, seed, batch_size, advance
        )


def _keep(found: ScheduleReport, report: Path | None, json_output: bool) -> None:
    if report is not None:
        write_file(report, lambda file: file.write_text(found.model_dump_json(indent=1) + "\n"))
    if json_output:
        print_json_line(found.model_dump_json())


def _nothing_within(rules: Sequence[Searched], budget: float) -> CatpError:
    best = max((pair for found in rules for pair in found.pairs), key=lambda pair: pair.low)
    report = rules[0].report
    return CatpError(
        f"no pair of encoder share and ratio stays within {budget:g} of the accuracy "
        f"{report.scores[0].accuracy:.3f}: the best one may cost {-100 * best.low:.1f} points; nothing was "
        f"changed. {_few(report, budget)}Try larger --flops, smaller --ratios, or a larger --max-accuracy-drop"
    )


def _against_even(
    pipeline: Pipeline, reference: Pipeline, wanted: Wanted, found: Searched, chosen: EncoderSetting
) -> tuple[list[EncoderSetting], list[Asked]]:
    """Settings for the confirming half: the dense encoder, the even schedule of that work, and the chosen one."""
    settings = [dense_setting(wanted), chosen]
    even = found.even_beside(chosen)
    if even.kept_tokens != chosen.kept_tokens:
        settings.insert(1, even)
    pruned = [Asked(pipeline, EncoderWish(kept_tokens=one.kept_tokens), one.ratio) for one in settings[1:]]
    return settings, [Asked(reference, EncoderWish(), wanted.dense_ratio), *pruned]


def _count(
    pipeline: Pipeline,
    reference: Pipeline,
    spec: EncoderPruningSpec,
    asked: DataSet,
    wanted: Wanted,
    seed: int,
    pictures: int,
) -> tuple[list[EncoderSetting], list[Asked], str]:
    """A schedule of mean counts, what is asked on the confirming half, and where the schedule comes from."""
    (share,), (ratio,) = wanted.shares, wanted.ratios
    even = even_schedule(spec, share)
    with busy("count tokens"):
        found = find_schedule(reference, half(asked, seed, "search"), share, pictures)
    settings = [
        dense_setting(wanted),
        EncoderSetting(name="dynamic", temperature=found.temperature, ratio=ratio),
        EncoderSetting(name="schedule, same share in each layer", kept_tokens=even, ratio=ratio),
        EncoderSetting(name="schedule", kept_tokens=found.kept_tokens, ratio=ratio),
    ]
    compared = [
        Asked(reference, EncoderWish(temperature=0.0), wanted.dense_ratio),
        Asked(reference, EncoderWish(temperature=found.temperature), ratio),
        *(Asked(pipeline, EncoderWish(kept_tokens=kept), ratio) for kept in (even, found.kept_tokens)),
    ]
    counted = f"mean counts of {found.pictures} pictures of {asked.name} at temperature {found.temperature:.4g}"
    return settings, compared, counted


def _check(found: EncoderReport, budget: float) -> None:
    """Raises CatpError where accuracy may fall by more than the budget."""
    before, after = found.scores[0], found.scores[-1]
    if not before.accuracy:
        raise CatpError(
            f"data {found.data}: none of {found.questions:,} questions is answered right by the dense encoder, so that "
            "nothing can be lost; nothing was changed. Give questions that this model can answer (--data)"
        )
    if after.low < -budget:
        kept = after.setting.kept_tokens
        assert kept is not None
        at = "" if after.setting.ratio is None else f" at ratio {after.setting.ratio:g}"
        raise CatpError(
            f"schedule {describe_kept(kept)}{at} is not confirmed: it costs {-100 * after.difference:.1f} points and "
            f"may cost {-100 * after.low:.1f}, the budget is {100 * budget:g}; nothing was changed. "
            f"{_few(found, budget)}Try a larger --flops, more questions, or a larger --max-accuracy-drop"
        )


def _few(found: EncoderReport, budget: float) -> str:
    needed = images_needed(budget)
    if found.images >= needed:
        return ""
    return f"{found.images} pictures can't show that so little is lost: give {2 * needed} or more, for both halves. "


def _apply(source: Path, manifest: Manifest, source_text: str, found: EncoderReport, with_ratio_too: bool) -> None:
    """The schedule in the manifest, and the ratio where that was chosen too."""
    before, after = found.scores[0], found.scores[-1]
    kept, ratio = after.setting.kept_tokens, after.setting.ratio
    assert kept is not None
    of_dense = before.setting.ratio
    confirmed = ScheduleConfirmation(
        data=found.data,
        metric=found.metric,
        seed=found.seed,
        questions=found.questions,
        before=before.accuracy,
        after=after.accuracy,
        difference=after.difference,
        interval_95=after.difference_95,
        ratios=None if of_dense is None or ratio is None else (of_dense, ratio),
    )
    changed = with_schedule(manifest, kept, f"catp-calibrate schedule: {source_text}", confirmed)
    also = ""
    if with_ratio_too and manifest.vote is not None and ratio is not None:
        changed = with_ratio(changed, ratio, manifest.vote.positions)
        also = f", and query tokens are left out at ratio {ratio:g}"
    write_manifest(source, changed, replaces=manifest)
    console.print(
        f"{escape(str(source))}: by default its vision encoder now keeps {describe_kept(kept)} image tokens, "
        f"{after.share:.0%} of the work{also}",
        soft_wrap=True,
    )
