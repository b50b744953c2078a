"""catp-calibrate ratio: the largest pruning ratio within an accuracy budget."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from catp.calibration.accuracy.evaluation import BATCH_SIZE
from catp.calibration.accuracy.settings import RANDOM, Setting, check_methods, score_outputs
from catp.calibration.accuracy.statistics import images_needed, mean_difference
from catp.calibration.commands.source import bundle_folder, check_adapter, is_bundle
from catp.calibration.data import open_data
from catp.calibration.data.dataset import DataSet
from catp.calibration.data.demo import DEMO_SEED
from catp.calibration.data.halves import Half, half
from catp.calibration.ratio.default import with_ratio
from catp.calibration.ratio.layer_weights import LayerWeights, check_layer_points
from catp.calibration.ratio.report import LearnedWeights, RatioReport, points, search_table
from catp.calibration.ratio.search import MeasuredHalf, measure
from catp.calibration.supported import check_votes
from catp.runtime.bundle.folder import write_manifest
from catp.runtime.bundle.manifest import Positions
from catp.runtime.bundle.publish import check_free
from catp.runtime.commands.console import busy, console, print_json_line
from catp.runtime.errors import CatpError, UsageError
from catp.runtime.files import check_file_output, write_file
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers import PROVIDERS
from catp.runtime.pruning import check_ratio, num_kept

RATIOS = tuple(round(0.1 + 0.05 * step, 2) for step in range(17))  # 0.1 to 0.9


def calibrate_ratio(
    source: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|MODEL",
            help="A bundle, whose manifest gets the ratio; or a checkpoint, which is exported to --output with the "
            "best method and its ratio.",
        ),
    ],
    adapter: Annotated[
        str | None, typer.Option(help="Of a MODEL: a LoRA adapter, a local folder or a Hub id, merged into it.")
    ] = None,
    data: Annotated[str, typer.Option(metavar="demo|FOLDER|JSONL", help="What to ask, as for catp-eval.")] = "demo",
    max_accuracy_drop: Annotated[
        float,
        typer.Option(help="What pruning may cost, of 1, at the worse end of the 95 % interval."),
    ] = 0.01,
    ratios: Annotated[str | None, typer.Option(help="Ratios to try. Default: 0.1 to 0.9 in steps of 0.05.")] = None,
    methods: Annotated[
        str | None,
        typer.Option(help="Methods to try, separated by commas. Default: a bundle's own; of a MODEL all."),
    ] = None,
    learn_layer_weights: Annotated[
        bool,
        typer.Option("--learn-layer-weights", help="Also learn how much each cross-attention layer's points count."),
    ] = False,
    positions: Annotated[
        Positions | None, typer.Option(help="Positions of kept tokens. Default: the bundle's.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Number of questions, both halves together. Default: all.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Instead of a number: this part of the questions.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the choice of questions, the halves and the intervals.")
    ] = DEMO_SEED,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = BATCH_SIZE,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Bundle to export a MODEL to.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    report: Annotated[Path | None, typer.Option(help="The report as a JSON file.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="The report as one line on standard output.")] = False,
) -> None:
    """Choose the largest pruning ratio that keeps accuracy within a budget.

    Half of the images searches, the other half confirms the choice. What is not confirmed changes nothing and exits 1.

    catp-calibrate ratio catp-bundle --data vqav2 --fraction 0.1 --max-accuracy-drop 0.01
    """
    if not 0 < max_accuracy_drop < 1:
        raise UsageError(f"max accuracy drop {max_accuracy_drop}: of 1, so 0 < drop < 1, such as 0.01 for one point")
    wanted = RATIOS if ratios is None else _parse_ratios(ratios)
    of_bundle = is_bundle(source)
    if of_bundle == (output is not None):
        raise UsageError(
            f"{source}: a bundle is changed in place, so leave --output out"
            if of_bundle
            else f"{source}: name the bundle that this checkpoint is exported to with --output"
        )
    check_adapter(source, adapter)
    check_file_output("--report", report)
    if output is not None:
        check_free(output, overwrite)
    asked = open_data(data).subset(limit, fraction, seed)
    with bundle_folder(source, adapter) as folder:
        with busy("load the bundle"):
            pipeline = Pipeline.load(folder, provider)
        check_votes(pipeline.bundle, "catp-calibrate ratio")
        manifest = pipeline.manifest
        own = manifest.pruning.method
        default = [own] if of_bundle else [method for method in score_outputs(manifest) if method != "none"]
        tried = check_methods(manifest, methods.split(",") if methods else default)
        if {RANDOM, "none"} & set(tried):
            raise UsageError(f"methods {','.join(tried)}: choose among methods that look at the image")
        if learn_layer_weights:
            check_layer_points(pipeline)
        mode = positions or manifest.pruning.positions
        settings = [Setting(method, mode, ratio) for method in tried for ratio in wanted]
        searched = _measure(pipeline, asked, "search", settings, seed, batch_size)
        console.print(search_table(searched, wanted, tried, max_accuracy_drop))
        advice = _few(searched, max_accuracy_drop)
        found = RatioReport(
            manifest.model.id,
            asked.name,
            asked.metric,
            seed,
            max_accuracy_drop,
            searched,
            chosen=searched.best(max_accuracy_drop),
        )
        if found.chosen is not None:
            setting = found.chosen.setting
            confirming = _measure(pipeline, asked, "confirmation", [setting], seed, batch_size)
            learned = _learn(pipeline, asked, setting, seed, batch_size) if learn_layer_weights else None
            found = replace(found, confirmation=confirming.drops[0], layer_weights=learned)
            advice = _few(confirming, max_accuracy_drop)
    if report is not None:
        write_file(report, lambda file: file.write_text(json.dumps(found.to_dict(), indent=1) + "\n"))
    if json_output:
        print_json_line(json.dumps(found.to_dict()))
    _check(found, advice)
    _apply(source, adapter, pipeline, of_bundle, setting, output, overwrite)


def _check(found: RatioReport, advice: str) -> None:
    """Raises CatpError where there is nothing to apply.

    Args:
        advice: where there were too few pictures.
    """
    budget = found.max_accuracy_drop
    if not found.search.full_accuracy:
        raise CatpError(
            f"data {found.data}: none of {found.search.questions:,} questions is answered right without pruning, "
            "so that nothing can be lost and accuracy says nothing about a ratio; nothing was changed. Give questions "
            "that this model can answer (--data)"
        )
    if found.chosen is None:
        raise CatpError(
            f"no ratio stays within {budget:g} of the accuracy {found.search.full_accuracy:.3f}; nothing was changed. "
            f"{advice}Try smaller --ratios, or a larger --max-accuracy-drop"
        )
    if found.layer_weights is not None:
        console.print(str(found.layer_weights), soft_wrap=True)
    confirmed, setting = found.confirmation, found.chosen.setting
    assert confirmed is not None
    console.print(
        f"Confirmation on {confirmed.questions:,} other questions: {setting.method} at ratio {setting.ratio:g} costs "
        f"{points(confirmed.difference)} points (at most {points(confirmed.low)} with 95 % confidence)",
        soft_wrap=True,
    )
    if not found.is_confirmed:
        raise CatpError(
            f"ratio {setting.ratio:g} is not confirmed: it may cost {points(confirmed.low)} points, the budget is "
            f"{100 * budget:g}; nothing was changed. {advice}Try questions about more pictures, or a larger "
            "--max-accuracy-drop"
        )


def _parse_ratios(text: str) -> tuple[float, ...]:
    try:
        found = sorted({check_ratio(float(part)) for part in text.split(",")})
    except ValueError:
        raise UsageError(f"ratios {text!r}: give numbers separated by commas, such as 0.25,0.5") from None
    if found[-1] <= 0:
        raise UsageError(f"ratios {text!r}: at least one above 0")
    return tuple(ratio for ratio in found if ratio > 0)


def _measure(
    pipeline: Pipeline, asked: DataSet, which: Half, settings: Sequence[Setting], seed: int, batch_size: int
) -> MeasuredHalf:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(which, total=len(asked) // 2)
        questions = half(asked, seed, which)
        return measure(
            pipeline, questions, settings, asked.metric, seed, batch_size, lambda done: progress.advance(task, done)
        )


def _learn(pipeline: Pipeline, asked: DataSet, setting: Setting, seed: int, batch_size: int) -> LearnedWeights:
    """Learned on the searching half, compared with equal weights on the confirming one."""
    ratio = setting.ratio
    assert ratio is not None
    kept = num_kept(ratio, pipeline.manifest.pruning.num_query_tokens)

    def on(which: Half) -> LayerWeights:
        questions = half(asked, seed, which)
        return LayerWeights(pipeline, questions, kept, setting.positions, asked.metric, batch_size)

    with busy("learn layer weights"):
        weights = on("search").learn()
        other = on("confirmation")
        found, equal = other.right(weights), other.right((1.0,) * len(weights))
        gain = mean_difference(found, equal, seed, clusters=other.images)
        return LearnedWeights(ratio, weights, float(found.mean()), float(equal.mean()), (gain.low, gain.high))


def _few(measured: MeasuredHalf, budget: float) -> str:
    needed = images_needed(budget)
    if measured.images >= needed:
        return ""
    return (
        f"{measured.images} pictures can't show that so little is lost: give {2 * needed} or more pictures, half of "
        "them to search and half to confirm. "
    )


def _apply(
    source: str,
    adapter: str | None,
    pipeline: Pipeline,
    of_bundle: bool,
    setting: Setting,
    output: Path | None,
    overwrite: bool,
) -> None:
    manifest = pipeline.manifest
    ratio = setting.ratio
    assert ratio is not None
    if of_bundle:
        own = manifest.pruning.method
        if setting.method != own:
            console.print(
                f"The bundle votes by {own}, so its manifest stays as it is. To use this choice, export "
                f"{escape(manifest.model.id)} anew: catp-export --method {setting.method} --ratio {ratio:g}",
                soft_wrap=True,
            )
            return
        write_manifest(pipeline.bundle.path, with_ratio(manifest, ratio, setting.positions), replaces=manifest)
        console.print(
            f"{escape(source)}: by default it now keeps tokens at ratio {ratio:g}, {setting.positions} positions",
            soft_wrap=True,
        )
        return
    from catp.export.exporter import export_bundle

    assert output is not None
    export_bundle(
        source,
        output,
        adapter=adapter,
        ratio=ratio,
        method=setting.method,
        positions=setting.positions,
        overwrite=overwrite,
        step=busy,
    )
    console.print(f"Published {escape(str(output))}: {setting.method} at ratio {ratio:g}", soft_wrap=True)
