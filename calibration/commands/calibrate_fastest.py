"""catp-calibrate fastest: the ratio that pays, with the precision and the encoder schedule beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from catp.calibration.accuracy.evaluation import BATCH_SIZE
from catp.calibration.accuracy.statistics import images_needed
from catp.calibration.benchmark.contenders.bundle_subject import BundleSubject, make_asked_input
from catp.calibration.benchmark.contenders.described import describe
from catp.calibration.benchmark.contenders.shared_engines import SharedEngines
from catp.calibration.benchmark.contenders.subject import IMAGE_SIZE, TimedInput
from catp.calibration.benchmark.costs.geometry import read_geometry
from catp.calibration.benchmark.machine import describe_machine
from catp.calibration.benchmark.options import NEW_TOKENS, RATIOS
from catp.calibration.benchmark.results.report import noise
from catp.calibration.benchmark.results.screen import WIDTH, counted
from catp.calibration.benchmark.schedules import Schedule
from catp.calibration.benchmark.timing.intervals import FEWEST
from catp.calibration.benchmark.timing.rounds import Measured, Rounds, measure, warm_up
from catp.calibration.data import open_data
from catp.calibration.data.demo import DEMO_SEED
from catp.calibration.data.halves import Half
from catp.calibration.encoder.default import with_schedule
from catp.calibration.encoder.report import describe_kept
from catp.calibration.fastest.asking import Asker
from catp.calibration.fastest.bundles import content_of, open_side_by_side
from catp.calibration.fastest.progress import Cell, ProgressFile, Settings
from catp.calibration.fastest.report import Attempt, Candidate, FastestReport, Questions, Timing
from catp.calibration.fastest.search import FIRST, confirm_fastest, judge, reason_of, with_times
from catp.calibration.fastest.tables import candidate_table
from catp.calibration.fastest.triples import Triple, make_triples
from catp.calibration.plots import check_plot
from catp.calibration.ratio.default import with_ratio
from catp.calibration.ratio.report import points
from catp.runtime.bundle.encoder_pruning import ScheduleConfirmation
from catp.runtime.bundle.folder import Bundle, write_manifest
from catp.runtime.commands.console import busy, console, make_console, print_json_line
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import check_file_output, write_file
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers import PROVIDERS, open_provider
from catp.runtime.providers.base import Provider
from catp.runtime.questions import position_mode
from catp.runtime.system.machine import available_cpus

ROUNDS = 30
WARMUP = 3


def calibrate_fastest(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE...",
            help="Bundles of one checkpoint, such as that of catp-export and what catp-calibrate precision made of it. "
            "The first is the measure: unpruned, its encoder dense. The chosen one's manifest gets the choice.",
        ),
    ],
    ratios: Annotated[
        str | None, typer.Option(help=f"Ratios to try with each bundle that votes. Default: {RATIOS}.")
    ] = None,
    encoder_flops: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Shares of the dense encoder's work to try with each bundle whose vision encoder prunes, such as "
            "0.8,0.5; 1 stands for the dense ones. Default: each bundle's own schedule.",
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        float, typer.Option(help="What it may cost, of 1, at the worse end of the 95 % interval.")
    ] = 0.02,
    data: Annotated[str, typer.Option(metavar="demo|FOLDER|JSONL", help="What to ask, as for catp-eval.")] = "demo",
    limit: Annotated[int | None, typer.Option(help="Number of questions, both halves together. Default: all.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Instead of a number: this part of the questions.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the choice of questions, the halves, the order of timing, the intervals.")
    ] = DEMO_SEED,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time; answers are timed one by one.")] = (
        BATCH_SIZE
    ),
    new_tokens: Annotated[
        int, typer.Option(min=1, help="Of a timed answer, exactly: an end token ends nothing.")
    ] = NEW_TOKENS,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of the prompt of a timed answer.")] = 16,
    rounds: Annotated[int, typer.Option(min=FEWEST, help="Rounds, each of which times every candidate once.")] = ROUNDS,
    time_all: Annotated[
        bool,
        typer.Option("--time-all/--time-within", help="Also time what loses too much, for the plot; or not."),
    ] = True,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: all CPUs.")] = None,
    progress: Annotated[
        Path | None,
        typer.Option(
            help="Keep accuracies in this .jsonl file; a run that was stopped goes on from it, and times anew."
        ),
    ] = None,
    report: Annotated[Path | None, typer.Option("-o", "--report", help="The report as a JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Accuracy against time, as a PNG file.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="The report as one line on standard output.")] = False,
) -> None:
    """Choose the bundle, encoder schedule and ratio that answer fastest on this machine within an accuracy budget.

    Half of the images says what every candidate loses against the unpruned first bundle. What stays within the budget
    is timed, all in the same rounds; the other half confirms the fastest, or else the next one. Of candidates that
    times do not tell apart the one that loses least is taken. What is not confirmed changes nothing and exits 1.

    catp-calibrate fastest catp-bundle catp-int8 --data vqav2 --fraction 0.1 --progress fastest.jsonl --plot pareto.png
    """
    if not 0 < max_accuracy_drop < 1:
        raise UsageError(f"max accuracy drop {max_accuracy_drop}: of 1, so 0 < drop < 1, such as 0.02 for two points")
    for option, path in (("--report", report), ("--progress", progress)):
        check_file_output(option, path)
    check_plot(plot)
    asked = open_data(data).subset(limit, fraction, seed)
    with busy("check the bundles"):
        bundles = open_side_by_side(folders, data)
    triples, schedules = make_triples(bundles, ratios, encoder_flops)
    first = next(iter(bundles.values()))
    # What does not fit the model is refused before hours of work rather than after.
    timed_input = make_asked_input(first, read_geometry(first), 1, prompt_tokens, new_tokens, seed)
    used = threads or available_cpus()
    settings = Settings(
        bundles={name: content_of(bundle.manifest) for name, bundle in bundles.items()},
        provider=provider,
        threads=used,
        data=asked.name,
        metric=asked.metric,
        limit=limit,
        fraction=fraction,
        seed=seed,
        batch_size=batch_size,
        questions=len(asked),
        digest=asked.digest(),
    )
    kept = None if progress is None else ProgressFile(progress, settings)
    with busy("load the bundles"):
        subjects = _load(bundles, schedules, provider, used)
        pipelines = {name: Pipeline(bundle, subjects[name].pipeline.provider) for name, bundle in bundles.items()}
    asker = Asker(pipelines, asked, seed, batch_size, kept)
    cells = _ask(asker, "search", triples)
    candidates = judge(cells, schedules, max_accuracy_drop, seed)
    found = FastestReport(
        machine=describe_machine(),
        bundles={name: describe(bundle, position_mode(bundle.manifest, None)) for name, bundle in bundles.items()},
        seed=seed,
        max_accuracy_drop=max_accuracy_drop,
        asked=Questions(
            data=asked.name,
            metric=asked.metric,
            batch_size=batch_size,
            questions=len(cells[FIRST].right),
            images=len(set(cells[FIRST].images)),
            skipped=cells[FIRST].skipped,
        ),
        candidates=tuple(candidates),
    )
    nothing = _why_nothing(found)
    if time_all or nothing is None:
        measured = _time(subjects, [one for one in candidates if time_all or one.within], timed_input, rounds, seed)
        candidates = with_times(candidates, measured, seed)
        timing = _timing(measured, timed_input, provider, used, found.machine.cpus)
        found = found.model_copy(update={"candidates": tuple(candidates), "timing": timing})
    if nothing is None:
        attempts, place, choice = confirm_fastest(
            candidates, lambda asked_of: _ask(asker, "confirmation", asked_of), max_accuracy_drop, seed
        )
        reason = "" if place is None else reason_of(candidates, place, choice)
        found = found.model_copy(update={"attempts": tuple(attempts), "chosen": place, "reason": reason})
        nothing = _why_unconfirmed(found)
    _keep(found, report, plot, json_output)
    if nothing is not None:
        raise CatpError(nothing)
    _apply(found, bundles)


def _load(
    bundles: Mapping[str, Bundle], schedules: Mapping[str, Sequence[Schedule]], provider: str, threads: int
) -> dict[str, BundleSubject]:
    """Subjects of the timing, by name. Graphs that bundles have in common are loaded once, for accuracy as well."""

    def new_provider() -> Provider:
        return SharedEngines(open_provider(provider, threads))

    # Plans of two bundles are other files, also where the graphs are the same.
    shared = None if PROVIDERS[provider].runs_plans else new_provider()
    return {
        name: BundleSubject(bundle, shared or new_provider(), name=name, schedules=schedules.get(name, ()))
        for name, bundle in bundles.items()
    }


def _ask(asker: Asker, which: Half, triples: Sequence[Triple]) -> list[Cell]:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(which, total=asker.encoders(which, triples) * len(asker.asked) // 2)
        asker.advance = lambda done: bars.advance(task, done)
        return asker.ask(which, triples)


def _time(
    subjects: Mapping[str, BundleSubject],
    candidates: Sequence[Candidate],
    timed_input: TimedInput,
    rounds: int,
    seed: int,
) -> Measured:
    """Times of all candidates in one run: those of another one, under another load, could not be paired with them."""
    cases = [one.triple.case for one in candidates]
    with busy("warm up"):
        for name, subject in subjects.items():
            warm_up(subject, timed_input, [case for case in cases if case.subject == name], WARMUP)
    counts = Rounds(rounds)
    with counted(counts) as advance:
        return measure(subjects, timed_input, cases, counts, seed, advance)


def _timing(measured: Measured, timed_input: TimedInput, provider: str, threads: int, cpus: int) -> Timing:
    others = None if measured.others_seconds is None else measured.others_seconds / measured.seconds / cpus
    return Timing(
        rounds=len(measured.yardstick_ms),
        warmup=WARMUP,
        prompt_tokens=len(timed_input.prompt_ids),
        new_tokens=timed_input.new_tokens,
        image_size=IMAGE_SIZE,
        provider=provider,
        threads=threads,
        yardstick_ms=tuple(round(value, 4) for value in measured.yardstick_ms),
        cpu_of_others=others,
        notes=tuple(noise([], measured, others)),
    )


def _why_nothing(found: FastestReport) -> str | None:
    """Why there is nothing to choose after the search; None where there is something."""
    if not found.first.accuracy:
        return (
            f"data {found.asked.data}: none of {found.asked.questions:,} questions is answered right without pruning, "
            "so that nothing can be lost and accuracy says nothing; nothing was changed. Give questions that this "
            "model can answer (--data)"
        )
    others = found.candidates[FIRST + 1 :]
    if any(one.within for one in others):
        return None
    best = max(others, key=lambda one: one.low)
    return (
        f"nothing stays within {found.max_accuracy_drop:g} of the accuracy {found.first.accuracy:.3f}: the best one "
        f"({best.triple}) may cost {points(best.low)} points; nothing was changed. {_few(found)}Try smaller --ratios, "
        "larger --encoder-flops, or a larger --max-accuracy-drop"
    )


def _why_unconfirmed(found: FastestReport) -> str | None:
    """Why nothing was chosen after all; None where something was."""
    if found.chosen is not None:
        return None
    last = found.attempts[-1]
    tried = ", ".join(str(found.candidates[attempt.candidate].triple) for attempt in found.attempts)
    return (
        f"nothing that is faster is confirmed on {last.questions:,} other questions (tried: {tried}): the last one may "
        f"cost {points(last.low)} points, the budget is {100 * found.max_accuracy_drop:g}; nothing was changed. "
        f"{_few(found)}Try questions about more pictures, or a larger --max-accuracy-drop"
    )


def _few(found: FastestReport) -> str:
    needed = images_needed(found.max_accuracy_drop)
    if found.asked.images >= needed:
        return ""
    return (
        f"{found.asked.images} pictures can't show that so little is lost: give {2 * needed} or more pictures, half "
        "of them to search and half to confirm. "
    )


def _keep(found: FastestReport, report: Path | None, plot: Path | None, json_output: bool) -> None:
    """Everything that was found, whether or not something is chosen."""
    wide = console if console.is_terminal else make_console(width=WIDTH)
    wide.print(candidate_table(found))
    if found.asked.skipped:
        console.print(f"[yellow]warning:[/] {found.asked.skipped:,} questions could not be asked")
    for note in found.timing.notes if found.timing is not None else ():
        console.print(f"[yellow]warning:[/] {note}", soft_wrap=True)
    for attempt in found.attempts:
        console.print(_confirmation(found, attempt), soft_wrap=True)
    if report is not None:
        write_file(report, lambda file: file.write_text(found.model_dump_json(indent=1) + "\n"))
    if plot is not None and found.timing is not None:
        from catp.calibration.fastest.plot import draw_front

        write_file(plot, lambda file: draw_front(found, file))
    if json_output:
        print_json_line(found.model_dump_json())


def _confirmation(found: FastestReport, attempt: Attempt) -> str:
    name = escape(str(found.candidates[attempt.candidate].triple))
    outcome = "" if attempt.confirmed else ": not confirmed"
    return (
        f"Confirmation on {attempt.questions:,} other questions: {name} costs {points(attempt.difference)} points (at "
        f"most {points(attempt.low)} with {100 * attempt.confidence:.4g} % confidence){outcome}"
    )


def _apply(found: FastestReport, bundles: Mapping[str, Bundle]) -> None:
    """The choice as the default of its bundle."""
    assert found.chosen is not None
    chosen = found.candidates[found.chosen]
    triple = chosen.triple
    bundle = bundles[triple.bundle]
    changed, what = bundle.manifest, []
    if triple.kept_tokens is not None:
        source = (
            f"catp-calibrate fastest: {chosen.encoder_share:.0%} of the work; of {len(found.candidates)} candidates"
        )
        changed = with_schedule(changed, triple.kept_tokens, source, _confirmed(found))
        what.append(f"its vision encoder keeps {describe_kept(triple.kept_tokens)} image tokens")
    if triple.ratio is not None and changed.vote is not None:
        changed = with_ratio(changed, triple.ratio, changed.vote.positions)
        what.append(f"tokens are kept at ratio {triple.ratio:g}")
    if changed != bundle.manifest:
        write_manifest(bundle.path, changed, replaces=bundle.manifest)
    console.print(f"{escape(found.reason)}{escape(_gain(chosen))}.", soft_wrap=True)
    now = f"by default {' and '.join(what)}" if what else "it stays as it is"
    console.print(f"{escape(str(bundle.path))}: {now}", soft_wrap=True)


def _gain(chosen: Candidate) -> str:
    if chosen.speedup is None or chosen.speedup.interval_95 is None:
        return ""
    low, high = chosen.speedup.interval_95
    return f"; {chosen.speedup.median:.2f} times as fast as unpruned ({low:.2f} to {high:.2f})"


def _confirmed(found: FastestReport) -> ScheduleConfirmation:
    last = found.attempts[-1]
    ratio = found.candidates[last.candidate].triple.ratio
    return ScheduleConfirmation(
        data=found.asked.data,
        metric=found.asked.metric,
        seed=found.seed,
        questions=last.questions,
        before=last.full_accuracy,
        after=last.accuracy,
        difference=last.difference,
        interval_95=last.interval_95,
        ratios=None if ratio is None else (0.0, ratio),
    )
