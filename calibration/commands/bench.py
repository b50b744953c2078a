"""catp-bench: how long a bundle takes, stage by stage, and whether that changed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from catp.calibration.benchmark.compare import compare
from catp.calibration.benchmark.contenders import CONTENDERS, check_contenders, find_checkpoint, open_contender
from catp.calibration.benchmark.cost import Workload, cost_of
from catp.calibration.benchmark.geometry import read_geometry
from catp.calibration.benchmark.machine import (
    available_cpus,
    describe_machine,
    load_average,
    peak_memory,
    resident_memory,
)
from catp.calibration.benchmark.ours import BundleSubject
from catp.calibration.benchmark.rates import measure_rates
from catp.calibration.benchmark.report import Load, Report, Setup, Subject, make_report, read_report
from catp.calibration.benchmark.rounds import MOST_ROUNDS, Rounds, measure, warm_up
from catp.calibration.benchmark.subject import IMAGE_SIZE, OURS, Case, Question, make_question
from catp.calibration.benchmark.subject import Subject as Timed
from catp.calibration.benchmark.tables import (
    change_table,
    contender_table,
    cost_table,
    latency_table,
    load_table,
    pruning_table,
    roofline_table,
)
from catp.calibration.plots import check_plot
from catp.runtime.bundle import Bundle, open_bundle
from catp.runtime.commands.console import busy, check_file_output, console, make_group, print_json_line, write_file
from catp.runtime.engines import PROVIDERS, open_provider
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.manifest import Positions
from catp.runtime.pruning import check_ratio, num_kept

ITERATIONS = 50
WIDTH = 240


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export.")],
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    engines: Annotated[
        str | None, typer.Option(help="Engine set, as catp-inspect names it. Default: the newest that fits.")
    ] = None,
    ratios: Annotated[
        str,
        typer.Option(help="Fractions of query tokens removed, separated by commas; 0, the baseline, is always timed."),
    ] = "0,0.25,0.5,0.75",
    batch: Annotated[str, typer.Option(help="Images at a time, separated by commas.")] = "1,4",
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of a prompt made of the seed.")] = 16,
    new_tokens: Annotated[int, typer.Option(min=1, help="Generated exactly: an end token ends nothing.")] = 10,
    positions: Annotated[
        Positions | None, typer.Option(help="Positions of kept tokens. Default: the bundle's.")
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Untimed runs of each setting.")] = 5,
    iterations: Annotated[
        int | None, typer.Option(min=1, help=f"Rounds, each of which times every setting once. Default: {ITERATIONS}.")
    ] = None,
    min_time: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help=f"Instead: rounds until each setting ran so long, {MOST_ROUNDS} at most."),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help=f"Also time the same weights in: {', '.join(CONTENDERS)}; separated by commas."),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Weights of --against: a folder or a Hub id. Default: the demo's."),
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads, of all runtimes. Default: all CPUs.")] = None,
    seed: Annotated[int, typer.Option(help="Of pictures, prompt, order and intervals.")] = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The report as a JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Stages stacked against ratio, as a PNG file.")] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="The report as one line of JSON on standard output.")
    ] = False,
) -> None:
    """Time a bundle stage by stage, at several pruning ratios and batch sizes.

    Every round times every setting once, in an order drawn anew; ratios between settings are paired by round. Loading
    and warm-up are in none of the times. Times are for a machine that does nothing else.

    catp-bench run catp-bundle --against transformers --checkpoint Salesforce/blip2-opt-2.7b -o report.json
    """
    check_file_output("--output", output)
    check_plot(plot)
    batches = _parse_batches(batch)
    wanted = _parse_ratios(ratios)
    rounds = _parse_rounds(iterations, min_time)
    names = check_contenders([name.strip() for name in against.split(",")] if against else ())
    started = time.perf_counter()
    opened = open_bundle(bundle)
    verified = time.perf_counter() - started
    manifest = opened.manifest
    if manifest.pruning.method == "none" and wanted != (0.0,):
        raise UsageError("ratios: this bundle was exported with --method none and keeps every token; give --ratios 0")
    weights = find_checkpoint(manifest, checkpoint) if names else ""
    geometry = read_geometry(opened)
    question = make_question(manifest, geometry.language.vocabulary, max(batches), prompt_tokens, new_tokens, seed)
    setup = Setup(
        provider=provider,
        engines=engines,
        threads=threads or available_cpus(),
        batches=batches,
        ratios=wanted,
        against=names,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        image_size=IMAGE_SIZE,
        seed=seed,
        warmup=warmup,
    )
    described = _describe(opened, positions)
    machine = describe_machine()
    load_before = load_average()
    with busy("measure the machine"):
        rates = measure_rates(setup.threads)
    costs = [
        cost_of(manifest, geometry, Workload(size, kept, prompt_tokens, new_tokens), ratio)
        for size in batches
        for ratio in wanted
        for kept in (num_kept(ratio, manifest.pruning.num_query_tokens),)
    ]
    _print(cost_table(described, costs, rates, machine))
    subjects, loads = _load(opened, setup, positions, weights, question, verified)
    cases = [case for name in subjects for case in _cases(setup, name)]
    with _counted(rounds) as advance:
        measured = measure(subjects, question, cases, rounds, seed, advance)
    load_after = load_average()
    with busy("measure the machine again"):
        rates_after = measure_rates(setup.threads)
    report = make_report(
        described, setup, machine, (load_before, load_after), (rates, rates_after), costs, loads, measured
    )
    _show(report)
    if output is not None:
        write_file(output, lambda: output.write_text(report.model_dump_json() + "\n"))
    if plot is not None:
        from catp.calibration.benchmark.plot import draw_latency

        write_file(plot, lambda: draw_latency(report, plot))
    if json_output:
        print_json_line(report.model_dump_json())


def compare_reports(
    old: Annotated[Path, typer.Argument(help="Report of catp-bench run -o.")],
    new: Annotated[Path, typer.Argument(help="Report of the same work, later.")],
    threshold: Annotated[
        float, typer.Option(help="How much slower is too slow: 0.05 for 5 %, with 95 % confidence.")
    ] = 0.05,
    json_output: Annotated[
        bool, typer.Option("--json", help="The comparison as one line of JSON on standard output.")
    ] = False,
) -> None:
    """Compare two reports: exit 1 where a stage, or the whole, got slower beyond the threshold.

    catp-bench compare before.json after.json --threshold 0.05
    """
    if not 0 <= threshold < 10:
        raise UsageError(f"threshold {threshold}: how much slower is too slow, such as 0.05 for 5 %")
    found = compare(read_report(old), read_report(new), threshold)
    _print(change_table(found))
    _notes(found.notes)
    if json_output:
        print_json_line(found.model_dump_json())
    slower = [change for change in found.changes if change.slower and change.counts]
    if slower:
        worst = max(slower, key=lambda change: change.change.median)
        raise CatpError(
            f"{new}: {len(slower)} of {len(found.changes)} stages are more than {100 * threshold:g} % slower than in "
            f"{old}; most {worst.stage} ({Case(worst.batch, worst.subject, worst.ratio)}): "
            f"{100 * (worst.change.median - 1):+.1f} %"
        )
    console.print(f"No stage is more than {100 * threshold:g} % slower with 95 % confidence.")


def _describe(bundle: Bundle, positions: Positions | None) -> Subject:
    manifest = bundle.manifest
    return Subject(
        path=str(bundle.path),
        model=manifest.model,
        precision=manifest.precision,
        method=manifest.pruning.method,
        num_query_tokens=manifest.pruning.num_query_tokens,
        positions=positions or manifest.pruning.positions,
        parameters={name: graph.parameters for name, graph in manifest.graphs.items()},
        sha256={name: graph.file.sha256 for name, graph in manifest.graphs.items()},
    )


def _cases(setup: Setup, name: str) -> list[Case]:
    ratios = setup.ratios if name == OURS else (0.0,)
    return [Case(size, name, ratio) for size in setup.batches for ratio in ratios]


def _load(
    bundle: Bundle, setup: Setup, positions: Positions | None, weights: str, question: Question, verified: float
) -> tuple[dict[str, Timed], list[Load]]:
    """Load and warm up ours, then each contender, so that memory can be told apart."""
    openers: dict[str, Callable[[], Timed]] = {
        OURS: lambda: BundleSubject(bundle, open_provider(setup.provider, setup.threads, setup.engines), positions)
    }
    for name in setup.against:
        openers[name] = lambda name=name: open_contender(name, weights, setup.threads)  # type: ignore[misc]
    subjects: dict[str, Timed] = {}
    loads = []
    for name, opener in openers.items():
        before = resident_memory()
        clock = [time.perf_counter()]
        with busy(f"load {name}"):
            subjects[name] = opener()
        clock.append(time.perf_counter())
        with busy(f"warm up {name}"):
            warm_up(subjects[name], question, _cases(setup, name), setup.warmup)
        clock.append(time.perf_counter())
        after = resident_memory()
        loads.append(
            Load(
                subject=name,
                verify_seconds=verified if name == OURS else None,
                load_seconds=clock[1] - clock[0],
                warmup_seconds=clock[2] - clock[1],
                resident_bytes=None if after is None or before is None else after - before,
                peak_bytes=peak_memory(),
            )
        )
    return subjects, loads


def _parse_ratios(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted({0.0, *(check_ratio(float(part)) for part in text.split(","))}))
    except ValueError:
        raise UsageError(f"ratios {text!r}: give numbers separated by commas, such as 0,0.25,0.5,0.75") from None


def _parse_batches(text: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = (0,)
    if found[0] < 1:
        raise UsageError(f"batch {text!r}: give whole numbers from 1 on, separated by commas, such as 1,4")
    return found


def _parse_rounds(iterations: int | None, min_time: str | None) -> Rounds:
    if min_time is None:
        return Rounds(count=iterations or ITERATIONS)
    if iterations is not None:
        raise UsageError(f"--iterations {iterations} and --min-time {min_time}: give one of them")
    try:
        seconds = float(min_time.removesuffix("s"))
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UsageError(f"--min-time {min_time!r}: give seconds, such as 5 or 5s")
    return Rounds(count=None, min_seconds=seconds)


@contextmanager
def _counted(rounds: Rounds) -> Iterator[Callable[[int, Mapping[Case, float]], None]]:
    """A bar for people who wait. It moves between measurements, not while one is being taken."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, auto_refresh=False, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("rounds", total=1.0)

        def advance(done: int, seconds: Mapping[Case, float]) -> None:
            part = done / rounds.count if rounds.count else min(seconds.values()) / (rounds.min_seconds or 1.0)
            progress.update(task, completed=min(1.0, part), refresh=True)

        yield advance


def _show(report: Report) -> None:
    for table in (
        load_table(report),
        latency_table(report),
        roofline_table(report),
        pruning_table(report),
        contender_table(report),
    ):
        if table is not None:
            _print(table)
    load = report.load_average_after
    console.print(
        f"Timed: from pictures in memory to token ids in host memory; {report.setup.clock}; {report.setup.order}. "
        f"Host time counts as before the first token where a runtime does not tell. {report.rounds} rounds in "
        f"{report.seconds:.0f} s, load average afterwards {'unknown' if load is None else f'{load:.1f}'}.",
        soft_wrap=True,
    )
    _notes(report.notes)


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def _print(table: Table) -> None:
    # A file has no width that rows would have to be folded to.
    (console if console.is_terminal else Console(file=sys.stderr, highlight=False, width=WIDTH)).print(table)


app = make_group("How long a bundle takes, stage by stage.", {"run": run, "compare": compare_reports})

if __name__ == "__main__":
    app()
