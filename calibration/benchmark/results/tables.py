"""A report as tables on the screen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.markup import escape
from rich.table import Table

from catp.calibration.benchmark.contenders.described import Described
from catp.calibration.benchmark.contenders.subject import COMPUTED, OURS, SAME_SCORE, Case, prunes
from catp.calibration.benchmark.costs.cost import Cost
from catp.calibration.benchmark.kernel_times import KINDS
from catp.calibration.benchmark.machine import Machine
from catp.calibration.benchmark.rates import Rates
from catp.calibration.benchmark.results.compare import Change, Comparison
from catp.calibration.benchmark.results.report import BenchmarkReport, Result
from catp.calibration.benchmark.schedules import Schedule
from catp.calibration.benchmark.timing.intervals import MedianDifference, Ratio
from catp.calibration.benchmark.vote.break_even import Thresholds
from catp.runtime.bundle.chains import graphs_of

TITLES = {
    "preprocess": "preprocess",
    "vision": "vision",
    "qformer": "qformer+vote",
    "image": "image vector",
    "text": "text encoder",
    "match": "matching head",
    "prefill": "prefill",
    "decode": "decode/token",
    "host": "host",
    "time_to_first_token": "first token",
    "time_per_output_token": "per output token",
    "total": "total",
}
MISSING = "too few"


def cost_table(
    bundle: Described, costs: Sequence[Cost], rates: Rates, machine: Machine, schedule: Schedule | None = None
) -> Table:
    """The work of each stage at each ratio, and the least time that takes here; no stage has run yet.

    Args:
        schedule: that the costs are of, of an encoder that prunes.
    """
    kept = "" if schedule is None else f", {schedule.rule} leaves {schedule.left} image tokens"
    made = ", random weights" if bundle.random_weights else ""
    integer = f"{rates.int8_gops:,.0f} in int8, " if rates.int8_gops else ""
    title = (
        f"Cost of {escape(bundle.model.id)}{made}; {bundle.precision_label}{kept}. {escape(machine.cpu)}, "
        f"{rates.threads} threads: {rates.gflops:,.0f} GFLOP/s in float32, {integer}"
        f"{rates.bytes_per_second / 1e9:.1f} GB/s (measured)"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("batch", justify="right")
    table.add_column("stage")
    table.add_column("parameters, M", justify="right")
    for ratio in dict.fromkeys(cost.ratio for cost in costs):
        table.add_column(f"ratio {ratio:g}: GFLOP", justify="right")
        table.add_column("MB", justify="right")
        table.add_column("least ms", justify="right")
    for batch in dict.fromkeys(cost.batch for cost in costs):
        table.add_section()
        row = [cost for cost in costs if cost.batch == batch]
        for stage in row[0].stages:
            cells = []
            for cost in row:
                part = cost.stages[stage]
                cells += [f"{part.flops / 1e9:.3g}", f"{part.bytes / 1e6:,.1f}", _ms(rates.least_ms(part))]
            parameters = sum(bundle.parameters.get(graph, 0) for graph in graphs_of(stage))
            table.add_row(f"{batch}", TITLES[stage], f"{parameters / 1e6:,.1f}", *cells)
        if any(cost.cache_bytes for cost in row):
            cache = [cell for cost in row for cell in ("", f"{cost.cache_bytes / 1e6:,.2f}", "")]
            table.add_row(f"{batch}", "key-value cache, at the end", "", *cache)
    return table


def bundle_table(report: BenchmarkReport) -> Table | None:
    """The bundles; None where there is only one, of which the card of costs says as much."""
    if not report.bundles:
        return None
    table = Table(title="Bundles", title_justify="left")
    encoder = ("encoder",) if report.prunes_inside else ()
    for column in ("runtime", "folder", "method", "positions", *encoder):
        table.add_column(column)
    bundles = {OURS: report.bundle, **report.bundles}
    graphs = dict.fromkeys(graph for bundle in bundles.values() for graph in bundle.precisions)
    for graph in graphs:
        table.add_column(graph)
    table.add_column("on disk, MB", justify="right")
    for name, bundle in bundles.items():
        precisions = [bundle.precisions.get(graph, "") for graph in graphs]
        table.add_row(
            escape(name), escape(bundle.path), bundle.method, bundle.positions,
            *([bundle.encoder] if encoder else []), *precisions,
            f"{sum(bundle.bytes.values()) / 1e6:,.1f}",
        )  # fmt: skip
    return table


def latency_table(report: BenchmarkReport) -> Table:
    """Medians of every stage, how long a whole answer takes, and how often."""
    setup = report.setup
    asked = f"{setup.prompt_tokens} prompt tokens, {setup.new_tokens} new ones"
    if setup.texts is not None:
        asked = f"texts of {setup.prompt_tokens} tokens; of a request: pictures {setup.pictures}, texts {setup.texts}"
    elif setup.pictures > 1:
        asked += f", {setup.pictures} frames"
    table = Table(title=f"Medians of {report.rounds} rounds in ms, {asked}", title_justify="left")
    _add_setting(table, report)
    stages = _present(TITLES, (result.milliseconds for result in report.results))
    for stage in stages:
        table.add_column(TITLES[stage], justify="right")
    writes = ("tokens/s",) if setup.texts is None else ()
    for column in ("p90", "p95", "p99", "std", *writes, "images/s"):
        table.add_column(column, justify="right")
    batch = None
    for result in report.results:
        if result.batch != batch:
            table.add_section()
        batch = result.batch
        medians = [_median(result, stage) for stage in stages]
        total = result.milliseconds["total"]
        spread = [MISSING if value is None else _ms(value) for value in (total.p90, total.p95, total.p99, total.std)]
        same, new = result.agreeing_tokens, report.setup.new_tokens
        mark = "" if same in (None, new) else f" [red](other tokens after {same} of {new})[/]"
        if (result.score_difference or 0.0) > SAME_SCORE:
            mark = f" [red](scores differ by {result.score_difference:.3g})[/]"
        tokens = () if result.tokens_per_second is None else (f"{result.tokens_per_second:,.1f}",)
        table.add_row(
            *_setting(report, result.case, mark), *medians, *spread, *tokens, f"{result.images_per_second:,.2f}",
        )  # fmt: skip
    return table


def roofline_table(report: BenchmarkReport) -> Table:
    """How near each stage is to what the machine's arithmetic and memory allow."""
    table = Table(
        title="Share of the machine's limit in % (least possible time over median)",
        title_justify="left",
    )
    _add_setting(table, report)
    stages = _present(COMPUTED, (result.milliseconds for result in report.results))
    for stage in stages:
        table.add_column(TITLES[stage], justify="right")
    for result in report.results:
        if result.roofline:
            shares = [f"{100 * result.roofline[s]:.0f}" if s in result.roofline else "" for s in stages]
            table.add_row(*_setting(report, result.case), *shares)
    return table


def kernel_table(report: BenchmarkReport) -> Table | None:
    """Where time goes inside the graphs; None where that was not asked for."""
    if not report.kernels:
        return None
    table = Table(
        title="Inside the graphs of one answer to one image, ms by ONNX Runtime's profiler (which slows small operators"
        " down; decode: all steps)",
        title_justify="left",
    )
    _add_setting(table, report)
    for column in ("stage", *KINDS, "all", "the longest operators"):
        table.add_column(column, justify="left" if column in ("stage", "the longest operators") else "right")
    for found in report.kernels:
        table.add_section()
        setting = _setting(report, Case(1, found.subject, found.ratio, found.encoder_flops))
        for stage, kinds in found.stages.items():
            longest = ", ".join(f"{name} {_ms(time)}" for name, time in list(found.operators[stage].items())[:3])
            times = [_ms(kinds[kind]) for kind in KINDS]
            table.add_row(*setting, TITLES[stage], *times, _ms(sum(kinds.values())), longest)
        totals = [found.total(kind) for kind in KINDS]
        whole = f"of an answer that took {_ms(found.answer_ms)}"
        table.add_row(*setting, "all", *map(_ms, totals), _ms(sum(totals)), whole, style="bold")
    return table


def pruning_table(report: BenchmarkReport) -> Table | None:
    """The stages that pruning changes, and those that it doesn't; None where nothing was pruned.

    Query tokens alone: the encoder does the same in both settings.
    """
    rows = [s for s in report.speedups if s.baseline == s.subject and not report.is_over_dense(s)]
    if not rows:
        return None
    table = Table(
        title="Pruned over unpruned, times as fast (95 % interval of paired rounds; * where 1 is outside)",
        title_justify="left",
    )
    _add_setting(table, report)
    cached = any(cost.cache_bytes for cost in report.costs)
    for column in ("tokens kept", *(["cache"] if cached else [])):
        table.add_column(column, justify="right")
    wanted = ("qformer", "text", "match", "prefill", "decode", "time_to_first_token", "total")
    stages = _present(wanted, (row.by_stage for row in rows))
    for stage in stages:
        table.add_column(TITLES[stage], justify="right")
    for row in rows:
        cost, full = report.cost(row.batch, row.ratio), report.cost(row.batch, 0.0)
        cache = [f"{100 * (cost.cache_bytes / full.cache_bytes - 1):+.0f} %"] if cached else []
        cells = [_ratio(row.by_stage.get(stage)) for stage in stages]
        table.add_row(*_setting(report, row.case), f"{cost.num_kept}", *cache, *cells)
    return table


def encoder_table(report: BenchmarkReport) -> Table | None:
    """The gain of pruning inside the vision encoder, with that of query tokens; None where no encoder prunes.

    Baselines are dense encoders, unpruned and at the same ratio; without any, the schedule that leaves most.
    """
    rows = [speedup for speedup in report.speedups if report.is_over_dense(speedup)]
    if not rows:
        return None
    table = Table(
        title="Encoder that prunes over one that does not, times as fast (95 % interval of paired rounds; * where 1 is "
        "outside)",
        title_justify="left",
    )
    _add_setting(table, report)
    for column in ("image tokens left", "GFLOPs", "over"):
        table.add_column(column, justify="left" if column == "over" else "right")
    wanted = ("vision", "qformer", "text", "match", "prefill", "time_to_first_token", "total")
    stages = _present(wanted, (row.by_stage for row in rows))
    for stage in stages:
        table.add_column(TITLES[stage], justify="right")
    for row in rows:
        schedule = report.setup.schedule(row.case)
        kept = ("", "") if schedule is None else (f"{schedule.left}", f"{schedule.gflops:.3g}")
        less = report.encoder_of(row.against)
        encoder = "" if less == "dense" else f", encoder {less}"
        ratio = f", ratio {row.baseline_ratio:g}" if report.has_query_tokens else ""
        over = f"{escape(row.baseline)}{encoder}{ratio}"
        cells = [_ratio(row.by_stage.get(stage)) for stage in stages]
        table.add_row(*_setting(report, row.case), *kept, over, *cells)
    return table


def contender_table(report: BenchmarkReport) -> Table | None:
    """Bundles over ours at the same ratio, and all bundles over other runtimes; None without contenders."""
    rows = [s for s in report.speedups if s.baseline != s.subject and not report.is_over_dense(s)]
    if not rows:
        return None
    table = Table(
        title="Times as fast as others, bundles at the same ratio "
        "(95 % interval of paired rounds; * where 1 is outside)",
        title_justify="left",
    )
    _add_setting(table, report)
    table.add_column("over", justify="left")
    wanted = ("vision", "qformer", "text", "match", "prefill", "decode", "time_to_first_token", "total")
    stages = _present(wanted, (row.by_stage for row in rows))
    for stage in stages:
        table.add_column(TITLES[stage], justify="right")
    for row in rows:
        cells = [_ratio(row.by_stage.get(stage)) for stage in stages]
        table.add_row(*_setting(report, row.case), escape(row.baseline), *cells)
    return table


def break_even_table(report: BenchmarkReport) -> Table | None:
    """The cost of the vote against the prefill that it saves, and from where on it pays; None where that is unknown."""
    found = report.break_even
    if found is None:
        return None
    table = Table(
        title=f"Does pruning pay? Medians in ms (95 % interval), {found.rounds} rounds of the Q-Former alone. From "
        f"where on: by the cost model, prefill at the {found.own_gflops:,.0f} GFLOP/s that it runs at / at the "
        f"{found.limit_gflops:,.0f} that this machine was seen to do; all else as timed",
        title_justify="left",
    )
    columns = ("batch", "ratio", "vote", "of the total", "prefill saved", "pays here", "from language model of")
    for column in (*columns, "from prompt of", "from batch of"):
        table.add_column(column, justify="right")
    for payoff in found.payoffs:
        table.add_row(
            f"{payoff.batch}", f"{payoff.ratio:g}", _difference(payoff.vote_ms), f"{100 * payoff.vote_of_total:.1f} %",
            _difference(payoff.saved_ms), payoff.pays, *_from_where_on(payoff.at_own_rate, payoff.at_limit),
        )  # fmt: skip
    return table


def load_table(report: BenchmarkReport) -> Table:
    """Loading and warm-up, which are in none of the times."""
    table = Table(title="Before timing (in none of the figures)", title_justify="left")
    columns = ("runtime", "verify, s", "load, s", "warm-up, s", "memory gained, MB", "peak so far, MB")
    on_device = any(load.device_bytes is not None for load in report.loads)
    for column in (*columns, *(["on the device, MB"] if on_device else [])):
        table.add_column(column, justify="left" if column == "runtime" else "right")
    for load in report.loads:
        table.add_row(
            escape(load.subject),
            "" if load.verify_seconds is None else f"{load.verify_seconds:.2f}",
            f"{load.load_seconds:.2f}",
            f"{load.warmup_seconds:.2f}",
            "" if load.resident_bytes is None else f"{load.resident_bytes / 1e6:,.0f}",
            f"{load.peak_bytes / 1e6:,.0f}",
            *([] if load.device_bytes is None else [f"{load.device_bytes / 1e6:,.0f}"]),
        )
    return table


def change_table(comparison: Comparison) -> Table:
    """Every stage of every setting, new against old."""
    table = Table(
        title=f"New against old, medians in ms (95 % interval; slower: the whole interval is beyond "
        f"{100 * comparison.threshold:+g} %)",
        title_justify="left",
    )
    inside = any(change.encoder_flops is not None for change in comparison.changes)
    queries = any(change.stage == "qformer" for change in comparison.changes)
    settings = ("batch", "runtime", *(["encoder"] if inside else []), *(["ratio"] if queries else []))
    for column in (*settings, "stage", "old", "new", "change", ""):
        table.add_column(column, justify="left" if column in ("runtime", "stage", "") else "right")
    setting = None
    for change in comparison.changes:
        if setting != change.case:
            table.add_section()
        setting = change.case
        encoder = "" if change.encoder_flops is None else f"{100 * change.encoder_flops:g} %"
        table.add_row(
            f"{change.batch}", escape(change.subject), *([encoder] if inside else []),
            *([f"{change.ratio:g}" if prunes(change.subject) else ""] if queries else []), TITLES[change.stage],
            _ms(change.old_ms), _ms(change.new_ms), _percent(change.change), _verdict(change),
        )  # fmt: skip
    return table


def _add_setting(table: Table, report: BenchmarkReport) -> None:
    """The columns that say what was timed; of the encoder only where one prunes, the ratio where there are queries."""
    ratio = ["ratio"] if report.has_query_tokens else []
    for column in ("batch", "runtime", *(["encoder"] if report.prunes_inside else []), *ratio):
        table.add_column(column, justify="left" if column == "runtime" else "right")


def _setting(report: BenchmarkReport, case: Case, mark: str = "") -> list[str]:
    """Their cells."""
    encoder = [report.encoder_of(case)] if report.prunes_inside else []
    ratio = [f"{case.ratio:g}" if prunes(case.subject) else ""] if report.has_query_tokens else []
    return [f"{case.batch}", f"{escape(case.subject)}{mark}", *encoder, *ratio]


def _present(wanted: Iterable[str], found: Iterable[Mapping[str, object]]) -> tuple[str, ...]:
    """Those stages that any of them has."""
    there = {stage for stages in found for stage in stages}
    return tuple(stage for stage in wanted if stage in there)


def _verdict(change: Change) -> str:
    if change.slower:
        return "[red]slower[/]" if change.counts else "slower (doesn't count)"
    return "[green]faster[/]" if change.faster else ""


def _difference(difference: MedianDifference) -> str:
    if difference.interval_95 is None:
        return f"{_ms(difference.median)} (too few rounds)"
    low, high = difference.interval_95
    return f"{_ms(difference.median)} ({_ms(low)} to {_ms(high)})"


def _from_where_on(own: Thresholds | None, limit: Thresholds | None) -> tuple[str, ...]:
    """Language model, prompt and batch, at either rate."""
    if own is None or limit is None:
        return ("unclear",) * 3
    return (
        f"{_weights(own.matrix_weights)} / {_weights(limit.matrix_weights)}",
        f"{_count(own.prompt_tokens)} / {_count(limit.prompt_tokens)}",
        f"{_count(own.batch)} / {_count(limit.batch)}",
    )


def _weights(count: int | None) -> str:
    """Weights of a language model, rounded: 2.7 G."""
    if count is None:
        return "none"
    return f"{count / 1e9:.1f} G" if count >= 1e9 else f"{count / 1e6:.0f} M"


def _count(number: int | None) -> str:
    return "none" if number is None else f"{number:,}"


def _percent(ratio: Ratio) -> str:
    low, high = ratio.interval_95 or (ratio.median, ratio.median)
    return f"{100 * (ratio.median - 1):+.1f} % ({100 * (low - 1):+.1f} to {100 * (high - 1):+.1f})"


def _median(result: Result, stage: str) -> str:
    return _ms(result.milliseconds[stage].p50) if stage in result.milliseconds else ""


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    if ratio.interval_95 is None:
        return f"{ratio.median:.2f} (too few rounds)"
    low, high = ratio.interval_95
    text = f"{ratio.median:.2f} ({low:.2f} to {high:.2f})"
    return f"[{'green' if ratio.median > 1 else 'red'}]{text} *[/]" if ratio.is_clear else f"{text}  "


def _ms(value: float) -> str:
    """Three significant digits, or all that are before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
