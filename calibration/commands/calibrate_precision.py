"""catp-calibrate precision: a bundle's graphs in INT8, FP8 or INT4, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from rich.markup import escape
from rich.progress import Progress as Bars
from rich.table import Table

from catp.calibration.accuracy.evaluation import BATCH_SIZE
from catp.calibration.data import open_data
from catp.calibration.data.captions import is_captions, read_captions
from catp.calibration.data.dataset import DataSet
from catp.calibration.data.fitting import finds_texts, fitting
from catp.calibration.data.matched import CaptionList, DemoPictures, PictureList
from catp.calibration.precision.budget import Budget, BudgetExceeded
from catp.calibration.precision.calibrator import Calibrator, Progress, split
from catp.calibration.precision.formats.base import BLOCK_SIZE, Activations
from catp.calibration.precision.ranges.statistics import PERCENTILE, RangeMethod
from catp.calibration.precision.recipe import BLOCK_SIZES, Recipe, make_recipe
from catp.calibration.precision.report import PrecisionReport
from catp.calibration.precision.tables import change_table, layer_table, trial_table
from catp.calibration.supported import check_data
from catp.export.demo import MODEL_ID
from catp.export.demo.nlvr import MODEL_ID as PAIRS_MODEL_ID
from catp.runtime.bundle.chains import DECODE_GRAPH, GRAPHS
from catp.runtime.bundle.folder import Bundle, open_bundle
from catp.runtime.bundle.manifest import Format, Manifest, Purpose
from catp.runtime.bundle.publish import check_free
from catp.runtime.commands.console import busy, console, print_json_line
from catp.runtime.commands.gallery import pictures_in
from catp.runtime.commands.lists import read_list_file
from catp.runtime.errors import UsageError
from catp.runtime.files import check_file_output, write_file

GraphFormat = Literal["int8", "fp8", "int4", "none"]
_OPTIONS = {
    "vision_encoder": "--vision",
    "qformer_voting": "--qformer",
    "language_model": "--language",
    DECODE_GRAPH: "--decode",
}

_STAY_FLOAT = ("image_embedding",)


def calibrate_precision(
    bundle: Annotated[
        Path, typer.Argument(help="Folder written by catp-export, in floating point. It is not changed.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new bundle.")],
    purpose: Annotated[
        Purpose,
        typer.Option(
            "--for",
            help="Who runs the graphs. tensorrt: catp-build takes them; cpu: ONNX Runtime on a CPU. Neither is fast "
            "with the other's.",
        ),
    ],
    to: Annotated[
        Format | None,
        typer.Option(
            help="Of every graph; int4, which helps where weights are read more than used, of the language model."
        ),
    ] = None,
    vision: Annotated[GraphFormat | None, typer.Option(help="Of the vision encoder, instead of --to.")] = None,
    qformer: Annotated[GraphFormat | None, typer.Option(help="Of the Q-Former, instead of --to.")] = None,
    language: Annotated[GraphFormat | None, typer.Option(help="Of the language model, instead of --to.")] = None,
    decode: Annotated[
        Literal["int4"] | None,
        typer.Option(
            help="cpu: of decode steps. They get a second copy of the language model, and the first is for prefill, "
            "which is faster in int8 than in int4; or they have a decoder of their own (Flan-T5, BLIP), which becomes "
            "int4."
        ),
    ] = None,
    data: Annotated[str, typer.Option(metavar="demo|FOLDER|JSONL", help="What to ask, as for catp-eval.")] = "demo",
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Of a model that finds texts: the folder of --data's pictures; or, with --texts, pictures "
            "that nobody wrote captions for.",
        ),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="With --images: a .txt file with a text in each line, or a list as .json. The one that fits a picture "
            "best has to stay the same.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Questions whose activations choose the ranges.")] = 512,
    method: Annotated[
        RangeMethod, typer.Option(help="How static ranges are chosen: extremes, or with rare values cut off.")
    ] = "minmax",
    percentile: Annotated[float, typer.Option(help="What --method percentile keeps, in per cent.")] = PERCENTILE,
    activations: Annotated[
        Literal["static", "dynamic"] | None,
        typer.Option(help="int8 for cpu: scaled by ranges seen here, or call by call (default). tensorrt: static."),
    ] = None,
    block_size: Annotated[
        int,
        typer.Option(help=f"int4: weights that share a scale, one of {', '.join(map(str, BLOCK_SIZES))}."),
    ] = BLOCK_SIZE,
    reduce_range: Annotated[
        bool, typer.Option("--reduce-range", help="int8 for cpu: 7 bits of weight, for CPUs without VNNI.")
    ] = False,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Layers that stay in floating point, such as '*.mlp.fc2'. Repeatable."),
    ] = None,
    max_accuracy_drop: Annotated[
        float, typer.Option(help="What it may cost, of 1, without pruning and at the bundle's ratio.")
    ] = 0.01,
    min_kept_overlap: Annotated[
        float, typer.Option(help="Share of the kept tokens that have to stay the same, of 1.")
    ] = 0.98,
    questions: Annotated[int, typer.Option(min=1, help="Asked of both bundles in each comparison, at most.")] = 500,
    sensitivity: Annotated[
        bool,
        typer.Option(help="Measure every layer's error, even where none has to stay in floating point."),
    ] = True,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of questions, the halves and the intervals.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time in comparisons.")] = BATCH_SIZE,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing bundle.")] = False,
    report: Annotated[Path | None, typer.Option(help="The report as a JSON file.")] = None,
    json_output: Annotated[bool, typer.Option("--json", help="The report as one line on standard output.")] = False,
) -> None:
    """Quantise a bundle's graphs, within an accuracy budget.

    Half of the images calibrates and chooses layers: where quantising all of them costs too much, the most sensitive
    ones stay in floating point. The other half confirms; what is not confirmed is not published, and exits 1.

    catp-calibrate precision catp-bundle --to int8 --decode int4 --for cpu -o catp-int8
    """
    if not 50 < percentile <= 100:
        raise UsageError(f"percentile {percentile}: in per cent, 50 < percentile <= 100, such as {PERCENTILE}")
    recipes = make_recipes(to, (vision, qformer, language), purpose, activations, block_size, reduce_range, decode)
    budget = Budget(max_accuracy_drop, min_kept_overlap)
    check_file_output("--report", report)
    check_free(output, overwrite)
    if output.exists() and bundle.exists() and output.samefile(bundle):
        raise UsageError(f"output {output}: it is the bundle that is read; name another folder")
    with busy("check the bundle"):
        opened = open_bundle(bundle)
    check_data(opened, data, "catp-calibrate precision")
    recipes = fit_to_chain(recipes, opened.manifest, {"--qformer": qformer, "--decode": decode})
    asked = split(_open(opened.manifest, data, images, texts), samples, questions, seed)
    if data == "demo" and opened.manifest.model.id not in (MODEL_ID, PAIRS_MODEL_ID):
        _note("ranges and accuracy come from the demo's coloured shapes, for which this model was not made; try --data")
    with _bars() as progress:
        calibrator = Calibrator(
            opened,
            recipes,
            asked,
            seed=seed,
            method=method,
            percentile=percentile,
            exclude=exclude or (),
            batch_size=batch_size,
            progress=progress,
        )
        try:
            found = calibrator.run(output, budget, sensitivity=sensitivity, overwrite=overwrite)
        except BudgetExceeded as error:
            _show(error.report, opened, report, json_output)
            raise
    _show(found, opened, report, json_output)
    assert found.calibration is not None
    open_question = budget.doubts(found.calibration.accuracy, found.calibration.questions, calibrator.pictures)
    if open_question is not None:
        _note(open_question)
    runs = "catp-run" if opened.manifest.writes_text else "catp-match"
    following = "catp-build" if purpose == "tensorrt" else runs
    console.print(f"Published {escape(str(output))}. Next: {following} {escape(str(output))}", soft_wrap=True)


def _open(manifest: Manifest, data: str, images: Path | None, texts: Path | None) -> DataSet:
    """The data that a bundle is asked: questions, or pictures and texts.

    Raises:
        UsageError: it can't be asked these, or a file can't be read.
        DataError: a file is broken.
    """
    family = manifest.model.family
    if not finds_texts(manifest):
        if given := [name for name, value in (("--images", images), ("--texts", texts)) if value is not None]:
            raise UsageError(f"{', '.join(given)}: {family} finds no texts; leave it out, and give --data")
        return fitting(manifest, open_data(data))
    if is_captions(data) and texts is None:
        return CaptionList(read_captions(Path(data), images))
    if data == "demo" and images is not None and texts is not None:
        words = read_list_file("--texts", texts)
        if len(set(words)) < 2:
            raise UsageError(f"--texts {texts}: give at least two different texts, of which one fits a picture best")
        return PictureList(images.name, pictures_in(images), words)
    if data == "demo" and images is None and texts is None:
        return DemoPictures()
    raise UsageError(
        f"data {data!r}: it is none for {family}; accepted: demo, a .json file with a list of image and caption "
        "(Karpathy's splits; --images says where the pictures are), or --images FOLDER with --texts FILE alone"
    )


def make_recipes(
    to: Format | None,
    own: tuple[GraphFormat | None, ...],
    purpose: Purpose,
    activations: Activations | None,
    block_size: int,
    reduce_range: bool,
    decode: Literal["int4"] | None = None,
) -> dict[str, Recipe]:
    """By graph.

    Args:
        own: for each of GRAPHS, what it is to be instead of `to`.
        decode: of a language model for decode steps alone; None: there is one for both.

    Raises:
        UsageError: nothing is to be quantised, or the runtime can't compute so.
    """
    recipes = {}
    for graph, asked in zip(GRAPHS, own):
        # Weight-only formats pay where a graph reads its weights for one token at a time.
        chosen = asked or (to if to != "int4" or graph == "language_model" else None)
        if chosen and chosen != "none":
            recipes[graph] = make_recipe(chosen, purpose, activations, block_size, reduce_range)
    if decode:
        if purpose != "cpu":
            raise UsageError(f"--decode {decode} for {purpose}: an engine has one copy of its weights; leave it out")
        if "language_model" in recipes and recipes["language_model"].format == decode:
            raise UsageError(f"--decode {decode}: the language model is {decode} already; give --language int8 or none")
        recipes[DECODE_GRAPH] = make_recipe(decode, purpose, None, block_size)
    if not recipes:
        options = ", ".join(_OPTIONS.values())
        raise UsageError(
            f"nothing to quantise: give --to, or one of {options}; accepted: {', '.join(get_args(Format))}"
        )
    return recipes


def fit_to_chain(recipes: dict[str, Recipe], manifest: Manifest, asked: Mapping[str, str | None]) -> dict[str, Recipe]:
    """The recipes by the graphs that a bundle has: the language model's are those of all graphs after the image's.

    Graphs that are one product of one row for each picture stay as they are.

    Args:
        recipes: for GRAPHS.
        asked: by option, what only GRAPHS has.

    Raises:
        UsageError: something was asked of a graph that the bundle lacks, or nothing is left.
    """
    graphs, decoder = manifest.chain.graphs, manifest.chain.decoder
    if graphs == GRAPHS:
        return recipes
    own = "--qformer, " if "qformer_voting" in graphs else ""
    there = {"--qformer": bool(own), "--decode": decoder is not None}
    asked = {option: value for option, value in asked.items() if not there[option]}
    if unfit := [option for option, value in asked.items() if value not in (None, "none")]:
        raise UsageError(
            f"{', '.join(unfit)}: this bundle's graphs are {', '.join(graphs)}; give {own}--vision or --language, "
            "which is for all others"
        )
    found = {
        graph: recipes.get(graph if graph in GRAPHS else "language_model")
        for graph in graphs
        if graph not in _STAY_FLOAT
    }
    if decoder is not None and DECODE_GRAPH in recipes:
        found[decoder] = recipes[DECODE_GRAPH]
    chosen = {graph: recipe for graph, recipe in found.items() if recipe is not None}
    if not chosen:
        raise UsageError(f"nothing to quantise: give --to, {own}--vision or --language")
    return chosen


def _note(text: str) -> None:
    console.print(f"[yellow]note:[/] {text}", soft_wrap=True)


def _show(found: PrecisionReport, source: Bundle, report: Path | None, json_output: bool) -> None:
    tables: list[Table | None] = [layer_table(found), trial_table(found)]
    if found.calibration is not None:
        tables.append(change_table(found, source.manifest.graphs))
    for table in tables:
        if table is not None:
            console.print(table)
    if found.calibration is not None and not any(change.before for change in found.calibration.accuracy):
        _note("the bundle answered no question right before, so its accuracy says nothing about the precision")
    if report is not None:
        write_file(report, lambda file: file.write_text(found.model_dump_json(indent=1) + "\n"))
    if json_output:
        print_json_line(found.model_dump_json())


@contextmanager
def _bars() -> Iterator[Progress]:
    """A bar for each thing that takes time, on a terminal."""
    with Bars(console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield progress
