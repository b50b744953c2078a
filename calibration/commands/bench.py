"""catp-bench: how long a bundle takes, stage by stage, and whether that changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from catp.calibration.benchmark.contenders.bundle_subject import BundleSubject, make_asked_input
from catp.calibration.benchmark.contenders.described import describe
from catp.calibration.benchmark.contenders.registry import (
    DENSE,
    check_dense,
    find_checkpoint,
    find_contenders,
    open_bundles,
    open_contender,
)
from catp.calibration.benchmark.contenders.runtimes import RUNTIMES
from catp.calibration.benchmark.contenders.scoring import (
    CLASSES,
    ScoringSubject,
    count_texts,
    make_scored_input,
)
from catp.calibration.benchmark.contenders.shared_engines import SharedEngines
from catp.calibration.benchmark.contenders.subject import IMAGE_SIZE, OURS, Subject
from catp.calibration.benchmark.costs.base import Workload
from catp.calibration.benchmark.costs.cost import Cost, cost_of
from catp.calibration.benchmark.costs.geometry import Geometry, read_geometry
from catp.calibration.benchmark.kernel_times import KernelTimes
from catp.calibration.benchmark.kernels import profile_kernels
from catp.calibration.benchmark.machine import describe_machine, load_average
from catp.calibration.benchmark.options import (
    ITERATIONS,
    NEW_TOKENS,
    RATIOS,
    parse_batches,
    parse_ratios,
    parse_rounds,
    parse_shares,
)
from catp.calibration.benchmark.rates import measure_rates
from catp.calibration.benchmark.results.compare import compare
from catp.calibration.benchmark.results.report import BenchmarkReport, make_report, read_report
from catp.calibration.benchmark.results.screen import counted, show, show_notes, show_table
from catp.calibration.benchmark.results.tables import change_table, cost_table
from catp.calibration.benchmark.schedules import Schedule, find_schedules
from catp.calibration.benchmark.synthetic.making import Inside, made
from catp.calibration.benchmark.synthetic.sizes import Preset
from catp.calibration.benchmark.timing.conditions import Setup
from catp.calibration.benchmark.timing.loading import load_subjects
from catp.calibration.benchmark.timing.rounds import MOST_ROUNDS, Rounds, measure
from catp.calibration.benchmark.vote.payoff import find_break_even
from catp.calibration.benchmark.vote.vote import time_vote, why_not
from catp.calibration.commands.bench_serve import serve
from catp.calibration.plots import check_plot
from catp.calibration.supported import check_answers
from catp.runtime.bundle.folder import Bundle
from catp.runtime.bundle.manifest import Manifest, Positions
from catp.runtime.commands.console import busy, console, make_group, print_json_line
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import check_file_output, write_file
from catp.runtime.providers import PROVIDERS, open_provider
from catp.runtime.providers.base import Provider
from catp.runtime.pruning import num_kept
from catp.runtime.questions import position_mode
from catp.runtime.system.machine import available_cpus

INSIDE = "In a vision encoder that prunes"


def run(
    bundle: Annotated[Path | None, typer.Argument(help="Folder written by catp-export or catp-calibrate.")] = None,
    synthetic: Annotated[
        Preset | None,
        typer.Option(
            help="In place of a bundle: export a model of such sizes with random weights; tiny is the demo's."
        ),
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where --synthetic leaves checkpoint and bundle for later.")
    ] = None,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    engines: Annotated[
        str | None, typer.Option(help="Engine set, as catp-inspect names it. Default: the newest that fits.")
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(
            help="Fractions of query tokens removed, separated by commas; 0, the baseline, is always timed. Default: "
            f"{RATIOS}, or 0 where none can be."
        ),
    ] = None,
    batch: Annotated[str, typer.Option(help="Images, or videos, at a time, separated by commas.")] = "1,4",
    prompt_tokens: Annotated[
        int,
        typer.Option(min=1, help="Of a prompt, also as a Q-Former reads it, or of each text; made of the seed."),
    ] = 16,
    new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help=f"Generated exactly: an end token ends nothing. Default: {NEW_TOKENS}."),
    ] = None,
    texts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Of a bundle that scores texts: how many each picture is compared with. Default: 1, or "
            f"{CLASSES} classes of a CLIP, which are the same for all pictures.",
        ),
    ] = None,
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
        typer.Option(
            metavar="NAMES",
            help=f"Also time the same weights in: {', '.join(RUNTIMES)}, or folders of other bundles of the same "
            "model; separated by commas.",
        ),
    ] = None,
    encoder_flops: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="Shares of the dense encoder's work that a vision encoder that prunes is left, separated by commas: "
            "each is timed at every ratio. Default: the bundle's schedule. With --synthetic: also export one that "
            "prunes, and time it beside the dense one.",
            rich_help_panel=INSIDE,
        ),
    ] = None,
    dense: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="The baseline of the above, in the same rounds: a bundle of the same checkpoint with a dense encoder.",
            rich_help_panel=INSIDE,
        ),
    ] = None,
    encoder_pruning: Annotated[
        str | None,
        typer.Option(metavar="RULE", help="Of --synthetic, as catp-export takes it.", rich_help_panel=INSIDE),
    ] = None,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="Weights that transformers loads: a folder or a Hub id. Default: the demo's."
        ),
    ] = None,
    kernels: Annotated[
        bool,
        typer.Option("--kernels", help="Also where time goes inside the graphs, by ONNX Runtime's profiler, on a CPU."),
    ] = False,
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
    and warm-up are in none of the times. Times are for a machine that does nothing else. With Flan-T5 or BLIP, prefill
    is its encoder and its decoder's first step. Bundles that score texts (for retrieval, CLIP, NLVR2) are asked to:
    a batch is so many requests, of one picture and --texts texts each, or of two pictures and a statement.

    catp-bench catp-bundle --against transformers --checkpoint Salesforce/blip2-opt-2.7b -o report.json

    catp-bench fp32-bundle --against int8-bundle

    catp-bench half-encoder --dense catp-bundle --encoder-flops 0.5,0.2 --ratios 0,0.5
    """
    check_file_output("--output", output)
    check_plot(plot)
    sizes, asked = parse_batches(batch), None if ratios is None else parse_ratios(ratios)
    shares = () if encoder_flops is None else parse_shares(encoder_flops)
    rounds = parse_rounds(iterations, min_time)
    inside = _inside(synthetic, shares, encoder_pruning)
    if "compile" in find_contenders(against) and warmup == 0:  # a mistake is said before anything is made
        raise UsageError("--warmup 0: --against compile compiles while it is warmed up; give 1 or more")
    if kernels and provider != "cpu":
        raise UsageError(f"--kernels and --provider {provider}: operators are profiled on a CPU; leave one of them out")
    load_before = load_average()  # making a synthetic bundle is a load of our own
    with _source(bundle, synthetic, keep, checkpoint, dense, inside) as (folder, weights, baseline):
        contenders = find_contenders(against, baseline)
        bundles, verified, wanted = open_bundles(folder, contenders, asked)
        if baseline is not None:
            check_dense(bundles[OURS], bundles[DENSE])
        if kernels:
            check_answers(bundles[OURS], "catp-bench --kernels")
        if len(bundles) <= len(contenders):  # not all of them are bundles
            weights = find_checkpoint(bundles[OURS].manifest, weights)
        setup = Setup(
            provider=provider,
            engines=engines,
            threads=threads or available_cpus(),
            batches=sizes,
            ratios=wanted,
            against=tuple(contenders),
            prompt_tokens=prompt_tokens,
            new_tokens=_new_tokens(bundles[OURS].manifest, new_tokens, positions),
            texts=count_texts(bundles[OURS].manifest, texts),
            pictures=bundles[OURS].manifest.pictures,
            image_size=IMAGE_SIZE,
            seed=seed,
            warmup=warmup,
            schedules=find_schedules(bundles, shares),
        )
        report = _measure(bundles, verified, weights, setup, positions, rounds, load_before, kernels)
    show(report)
    if output is not None:
        write_file(output, lambda file: file.write_text(report.model_dump_json() + "\n"))
    if plot is not None:
        from catp.calibration.benchmark.results.plot import draw_latency

        write_file(plot, lambda file: draw_latency(report, file))
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
    show_table(change_table(found))
    show_notes(found.notes)
    if json_output:
        print_json_line(found.model_dump_json())
    slower = [change for change in found.changes if change.slower and change.counts]
    if slower:
        worst = max(slower, key=lambda change: change.change.median)
        raise CatpError(
            f"{new}: {len(slower)} of {len(found.changes)} stages are more than {100 * threshold:g} % slower than in "
            f"{old}; most {worst.stage} ({worst.case}): "
            f"{100 * (worst.change.median - 1):+.1f} %"
        )
    console.print(f"No stage is more than {100 * threshold:g} % slower with 95 % confidence.")


@contextmanager
def _source(
    bundle: Path | None,
    synthetic: Preset | None,
    keep: Path | None,
    checkpoint: str | None,
    dense: Path | None,
    inside: Inside | None,
) -> Iterator[tuple[Path, str | None, Path | None]]:
    """The folder of what is timed; where the weights of other runtimes are, as far as that was said; and the folder of
    the same with a dense encoder, if it is timed too.
    """
    if synthetic is None:
        if bundle is None:
            raise UsageError("no bundle: give a folder written by catp-export, or --synthetic tiny")
        if keep is not None:
            raise UsageError(f"--keep {keep}: only what --synthetic makes can be kept; leave it out")
        yield bundle, checkpoint, dense
        return
    for given in (bundle, checkpoint and f"--checkpoint {checkpoint}", dense and f"--dense {dense}"):
        if given is not None:
            raise UsageError(f"{given} and --synthetic {synthetic}, which makes its own: give one of them")
    with made(synthetic, keep, busy, inside) as found:
        weights = str(found.checkpoint)
        yield (found.bundle, weights, None) if found.pruned is None else (found.pruned, weights, found.bundle)


def _inside(synthetic: Preset | None, shares: tuple[float, ...], rule: str | None) -> Inside | None:
    """The encoder that prunes which a synthetic model is exported with; None where none was asked for."""
    if rule is None and not (synthetic and shares):
        return None
    if synthetic is None or not shares:
        raise UsageError(
            f"--encoder-pruning {rule}: it is for a model that --synthetic makes with --encoder-flops; leave it out, "
            "or give both"
        )
    return Inside(rule, shares)


def _new_tokens(manifest: Manifest, asked: int | None, positions: Positions | None) -> int:
    """Tokens to generate; 0 where texts are scored.

    Raises:
        UsageError: an option of generation is given there.
    """
    if manifest.writes_text:
        return NEW_TOKENS if asked is None else asked
    for option, value in (("--new-tokens", asked), ("--positions", positions)):
        if value is not None:
            raise UsageError(
                f"{option} {value}: the bundle is {manifest.model.family}, which scores texts and generates none; "
                "leave it out"
            )
    return 0


def _measure(
    bundles: Mapping[str, Bundle],
    verified: Mapping[str, float],
    weights: str | None,
    setup: Setup,
    positions: Positions | None,
    rounds: Rounds,
    load_before: float | None,
    kernels: bool,
) -> BenchmarkReport:
    first = bundles[OURS]
    manifest, geometry = first.manifest, read_geometry(first)
    positions = position_mode(manifest, positions)  # the same for all bundles
    vocabulary, most, tokens = geometry.language.vocabulary, max(setup.batches), setup.prompt_tokens
    if setup.texts is None:
        timed_input = make_asked_input(first, geometry, most, tokens, setup.new_tokens, setup.seed)
    else:
        timed_input = make_scored_input(first, vocabulary, most, tokens, setup.texts, setup.seed)
    described = {name: describe(bundle, positions) for name, bundle in bundles.items()}
    machine = describe_machine()
    with busy("measure the machine"):
        rates = measure_rates(setup.threads)
    costs: dict[str, list[Cost]] = {name: [] for name in bundles}
    for name, bundle in bundles.items():
        for schedule in setup.schedules.get(name) or (None,):
            found = _costs(bundle.manifest, geometry, setup, schedule)
            show_table(cost_table(described[name], found, rates, machine, schedule))
            costs[name] += found

    def new_provider() -> Provider:
        return open_provider(setup.provider, setup.threads, setup.engines)

    first_provider = new_provider()
    shared = None if PROVIDERS[setup.provider].runs_plans else SharedEngines(first_provider)

    def open_subject(name: str) -> Subject:
        if name not in bundles:
            return open_contender(name, str(weights), setup.threads, manifest.model.language)
        provider, schedules = shared or new_provider(), setup.schedules.get(name, ())
        if setup.texts is not None:
            return ScoringSubject(bundles[name], provider, name, schedules)
        return BundleSubject(bundles[name], provider, positions, name, schedules)

    subjects, loads = load_subjects(open_subject, setup, timed_input, verified, busy)
    cases = [case for name in subjects for case in setup.cases(name)]
    with counted(rounds) as advance:
        measured = measure(subjects, timed_input, cases, rounds, setup.seed, advance)
    load_after = load_average()
    reason, votes = why_not(manifest, setup), None
    if reason is None:
        ours = subjects[OURS]
        assert isinstance(ours, BundleSubject)
        with busy("time the vote"):
            votes = time_vote(ours.pipeline, timed_input, setup, len(measured.yardstick_ms))
    profiled: list[KernelTimes] = []
    if kernels:
        with busy("profile the graphs"):
            for name, bundle in bundles.items():
                single = setup.model_copy(update={"batches": (1,)}).cases(name)
                schedules = setup.schedules.get(name, ())
                profiled += profile_kernels(bundle, setup.threads, positions, timed_input, single, schedules)
    with busy("measure the machine again"):
        rates_after = measure_rates(setup.threads)
    both = rates, rates_after
    voted = [cost for cost in costs[OURS] if cost.encoder_flops == setup.cases(OURS)[0].encoder_flops]
    break_even = find_break_even(manifest, geometry, setup, voted, both, measured, votes) if votes else None
    remarks = () if reason is None else (f"what the vote costs, and from where on it pays, is not known: {reason}",)
    return make_report(
        described,
        setup,
        machine,
        (load_before, load_after),
        both,
        costs,
        loads,
        measured,
        break_even,
        remarks,
        profiled,
    )


def _costs(manifest: Manifest, sizes: Geometry, setup: Setup, schedule: Schedule | None) -> list[Cost]:
    return [
        cost_of(
            manifest,
            sizes,
            Workload(size, kept, setup.prompt_tokens, setup.new_tokens, setup.texts or 1),
            ratio,
            schedule,
        )
        for size in setup.batches
        for ratio in setup.ratios
        for kept in (num_kept(ratio, manifest.tokens) * (manifest.model.frames or 1),)
    ]


app = make_group(
    "How long a bundle takes, stage by stage. `catp-bench BUNDLE` is short for `catp-bench run BUNDLE`.",
    {"run": run, "compare": compare_reports, "serve": serve},
    usual="run",
)

if __name__ == "__main__":
    app()
