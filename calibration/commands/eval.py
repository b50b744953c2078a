"""catp-eval: how much accuracy a bundle keeps at which pruning ratio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
from rich.markup import escape

from catp.calibration.accuracy.asking import Asking
from catp.calibration.accuracy.evaluation import BATCH_SIZE, evaluate
from catp.calibration.accuracy.settings import RANDOM, Grid, check_methods, score_outputs
from catp.calibration.accuracy.workers import Workers, open_workers
from catp.calibration.commands.eval_encoder import (
    RATIOS,
    check_own,
    compare_shares,
    encoder_wishes,
    inside,
    parse_numbers,
)
from catp.calibration.commands.eval_screen import counted, show, wide_console
from catp.calibration.commands.source import bundle_folder, checkpoint_of, describes_pictures, is_bundle
from catp.calibration.data import open_data
from catp.calibration.data.captions import Captions, is_captions, read_captions
from catp.calibration.data.dataset import DataSet
from catp.calibration.data.demo import DEMO_SEED
from catp.calibration.data.described import read_described
from catp.calibration.data.fitting import fitting, judges_pairs
from catp.calibration.encoder.answering import Amount
from catp.calibration.encoder.tables import score_table as encoder_table
from catp.calibration.plots import check_plot
from catp.calibration.retrieval.evaluation import RERANK, evaluate_retrieval
from catp.calibration.retrieval.recall import Setting
from catp.calibration.retrieval.tables import recall_table
from catp.calibration.supported import check_data
from catp.runtime.bundle.generation_settings import GREEDY, Overrides
from catp.runtime.bundle.manifest import Manifest, Positions
from catp.runtime.commands.console import busy, console, make_app, print_json_line
from catp.runtime.commands.generation_options import (
    CHOICE_PANEL,
    BeamsOption,
    EarlyStoppingOption,
    LengthPenaltyOption,
    MinNewTokensOption,
    SampleOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    early,
)
from catp.runtime.commands.lists import read_list
from catp.runtime.errors import UsageError
from catp.runtime.files import check_file_output, write_file
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers import PROVIDERS
from catp.runtime.questions import position_mode


def evaluate_bundle(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="BUNDLE|MODEL",
            help="Folder written by catp-export; or a checkpoint, which is exported for this run: a local folder, a "
            "Hub id, or a .pth file of MADTP's or BLIP's official code.",
        ),
    ],
    tokenizer: Annotated[
        str | None, typer.Option(help="Of a .pth file: a folder or Hub id that has it, as for catp-convert.")
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Of a MODEL: a LoRA adapter, a local folder or a Hub id, merged into it.")
    ] = None,
    data: Annotated[
        str,
        typer.Option(
            metavar="demo|FOLDER|JSONL",
            help="What to ask: demo (generated held-out scenes), a folder with VQAv2 as its zip files unpack (or a "
            "questions file in it), a .jsonl file with image, question and answers in each line, NLVR2's file of "
            "statements for a model of two images, or, of a model that compares or writes captions, a .json "
            "file with a list of image and caption, such as coco_karpathy_test.json.",
        ),
    ] = "demo",
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Of captions: what the names of pictures are relative to. Default: the file's folder.",
        ),
    ] = None,
    rerank: Annotated[
        int | None,
        typer.Option(
            min=0,
            help=f"Of captions: how many of the best a matching head reads again. Default: {RERANK}, if there is one.",
        ),
    ] = None,
    ratios: Annotated[
        str | None,
        typer.Option(help=f"Fractions of query tokens removed, separated by commas. Default: {RATIOS}."),
    ] = None,
    keep_mass: Annotated[
        str | None,
        typer.Option(help="Also keep, for each image, the fewest tokens with these shares of its votes: 0.5,0.8."),
    ] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="How tokens are voted for, separated by commas: the bundle's own method, random (drawn for every "
            "question), and those it was exported with --diagnostics for. Default: its own and random, with demo its "
            "own; of a MODEL all."
        ),
    ] = None,
    positions: Annotated[
        Literal["original", "compact", "both"] | None,
        typer.Option(help="Positions of kept tokens. Default: the bundle's; with demo both."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Number of questions, chosen by the seed. Default: all.")] = None,
    fraction: Annotated[float | None, typer.Option(help="Instead of a number: this part of the questions.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the choice of questions, random tokens, drawn answers, intervals and tests.")
    ] = DEMO_SEED,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Images, and rows of the language model, at a time.")
    ] = BATCH_SIZE,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    engines: Annotated[
        str | None, typer.Option(help="Engine set, as catp-inspect names it. Default: the newest that fits.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="auto|ADDRESS",
            help="Share the questions among workers on a Ray cluster that runs. Every machine has the bundle, and the "
            "pictures, under the same path. auto: the cluster that this machine belongs to.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Of a cluster: so many, which share its CPUs evenly. Default: one for each machine."),
    ] = None,
    encoder_flops: Annotated[
        str | None,
        typer.Option(
            help="Of a bundle whose vision encoder prunes, or of a MODEL: shares of its work, such as 0.8,0.5,0.2. The "
            "first one is what the others are compared with. Where query tokens are pruned too, each with every ratio."
        ),
    ] = None,
    encoder_temperatures: Annotated[
        str | None,
        typer.Option(
            help="The same of the dynamic form: temperatures, such as 0,0.5,1; 0 prunes nothing, own is the "
            "checkpoint's or the bundle's."
        ),
    ] = None,
    prompt_template: Annotated[
        str | None,
        typer.Option(
            help='Words around every question: "Question: {question} Short answer:". Default: Question: {question} '
            "Answer: where query tokens are voted for, else the question alone."
        ),
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(
            metavar="TEXTS|FILE",
            help="Of BLIP for question answering: the likeliest of these, separated by commas, or of those in a .txt "
            "or .json file, is the answer, and none is generated.",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Tokens of an answer at most. Default: the bundle's.", rich_help_panel=CHOICE_PANEL),
    ] = None,
    min_new_tokens: MinNewTokensOption = None,
    num_beams: BeamsOption = None,
    length_penalty: LengthPenaltyOption = None,
    early_stopping: EarlyStoppingOption = None,
    sample: SampleOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    predictions: Annotated[
        Path | None,
        typer.Option(help="Keep every answer in this .jsonl file; a run that was stopped goes on from it."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The report as a JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Accuracy against ratio as a PNG file.")] = None,
    json_output: Annotated[
        bool, typer.Option("--json", help="The report as one line of JSON on standard output.")
    ] = False,
) -> None:
    """Measure accuracy over pruning ratios, voting methods and position modes, through the exported graphs.

    Vision encoder and Q-Former run once per image. Intervals are 95 %; methods are compared question by question.
    Answers are generated greedily unless options say otherwise, whatever the bundle's default is.

    catp-eval catp-bundle --data vqav2 --fraction 0.1 --predictions eval.jsonl -o eval.json --plot eval.png
    """
    _check_outputs(predictions, output, plot)
    overrides: Overrides = {
        "do_sample": sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "early_stopping": early(early_stopping),
        "min_new_tokens": min_new_tokens,
    }
    given_answers = None if answers is None else tuple(read_list("--answers", answers))
    asking = Asking(prompt_template, GREEDY.asked_for(**overrides), max_new_tokens, given_answers)
    encoders = encoder_wishes(encoder_flops, encoder_temperatures)
    masses = parse_numbers("keep mass", keep_mass) if keep_mass is not None else ()
    wanted = parse_numbers("ratios", ratios) if ratios is not None else None
    if workers is not None and cluster is None:
        raise UsageError("--workers: only with --cluster; leave it out")
    if cluster is not None and encoders:
        raise UsageError(
            "--cluster: not with shares or temperatures of a vision encoder, which one process compares; leave one out"
        )
    if cluster is not None and not is_bundle(source):
        raise UsageError(f"--cluster: {source} is no bundle; give the folder of one, which every machine has")
    named, source = source, context.with_resource(checkpoint_of(source, tokenizer))
    shown = None if source == named else Path(named).stem
    described = is_captions(data) and describes_pictures(source)
    if is_captions(data) and not described:
        unfit = {
            "keep-mass": keep_mass,
            "methods": methods,
            "positions": positions,
            "fraction": fraction,
            "predictions": predictions,
            "plot": plot,
            "cluster": cluster,
            "prompt-template": prompt_template,
            "max-new-tokens": max_new_tokens,
            "answers": answers,
            **{name.removeprefix("do_").replace("_", "-"): value for name, value in overrides.items()},
        }
        if given := [f"--{name}" for name, value in unfit.items() if value is not None]:
            raise UsageError(f"{', '.join(given)}: not with pictures and captions; leave the option out")
        settings = [
            Setting(ratio=ratio, encoder_flops=wish.flops, encoder_temperature=wish.temperature)
            for wish in encoders or [EncoderWish()]
            for ratio in wanted or (None,)
        ]
        captions = read_captions(Path(data), images).subset(limit, seed)
        folder = context.with_resource(bundle_folder(source, adapter, *inside(encoders, encoder_temperatures), shown))
        with busy("load the bundle"):
            retrieval = Pipeline.load(folder, provider, engines=engines)
        check_own(retrieval.manifest, encoders)
        _evaluate_retrieval(retrieval, captions, settings, rerank, seed, batch_size, output, json_output)
        return
    foreign = {"--images": None if described else images, "--rerank": rerank}
    if given := [name for name, value in foreign.items() if value is not None]:
        raise UsageError(
            f"{', '.join(given)}: only with a .json file of pictures and captions as --data"
            + (", and a bundle that compares them" if described else "")
        )
    questions: DataSet = read_described(Path(data), images) if described else open_data(data)
    of_bundle = is_bundle(source)
    folder = context.with_resource(bundle_folder(source, adapter, *inside(encoders, encoder_temperatures), shown))
    pipeline = context.with_resource(_open(folder, provider, engines, cluster, workers))
    if not pipeline.manifest.writes_text and not judges_pairs(pipeline.manifest):
        raise UsageError(
            f"catp-eval: bundle {pipeline.bundle.path} is {pipeline.manifest.model.family}, which scores texts and "
            "answers no questions; give --data FILE.json, a list of image and caption (Karpathy's test splits)"
        )
    check_own(pipeline.manifest, encoders)
    if not described:
        check_data(pipeline.bundle, data, "catp-eval")
    questions = fitting(pipeline.manifest, questions)
    if of_texts := pipeline.manifest.question_pruning or pipeline.manifest.text_pruning:
        console.print(f"text encoder: {escape(of_texts.describe())}", soft_wrap=True)
    pruning = pipeline.manifest.encoder_pruning
    counts = pruning is not None and pruning.form == "dynamic"  # picture by picture: a batch would couple them
    if encoders or counts:
        unfit = {"methods": methods, "positions": positions, "predictions": predictions, "plot": plot}
        unfit["cluster"] = cluster
        votes = pipeline.manifest.vote is not None
        if not votes:
            unfit = {"ratios": ratios, "keep-mass": keep_mass, **unfit}
        if given := [f"--{name}" for name, value in unfit.items() if value is not None]:
            beside = ", which take --ratios and --keep-mass alone beside them" if votes else ""
            raise UsageError(
                f"{', '.join(given)}: not with shares or temperatures of a vision encoder, nor in its dynamic "
                f"form{beside}"
            )
        amounts = [Amount(ratio) for ratio in wanted or ()] + [Amount(keep_mass=mass) for mass in masses]
        wishes = encoders or [EncoderWish()]
        asked = questions.subset(limit, fraction, seed)
        assert isinstance(pipeline, Pipeline)
        found = compare_shares(pipeline, asked, wishes, amounts or [Amount()], seed, batch_size, asking)
        wide_console().print(encoder_table(found))
        if found.skipped:
            console.print(f"[yellow]warning:[/] {found.skipped:,} questions could not be asked")
        if output is not None:
            write_file(output, lambda file: file.write_text(found.model_dump_json(indent=1) + "\n"))
        if json_output:
            print_json_line(found.model_dump_json())
        return
    if pipeline.manifest.vote is None:
        _check_nothing_pruned(pipeline.manifest, wanted, masses, positions)
    chosen = _choose_methods(pipeline.manifest, methods, alone=of_bundle and data == "demo", all_=not of_bundle)
    if wanted is None:
        wanted = (0.0,) if chosen == ("none",) else parse_numbers("ratios", RATIOS)
    modes = _choose_positions(positions, pipeline.manifest, both=data == "demo")
    grid = Grid(chosen, wanted, modes, masses)
    with counted() as advance:
        report = evaluate(
            pipeline,
            questions,
            grid,
            seed=seed,
            limit=limit,
            fraction=fraction,
            batch_size=batch_size,
            engines=engines,
            predictions=predictions,
            asking=asking,
            advance=advance,
        )
    show(report)
    if output is not None:
        write_file(output, lambda file: file.write_text(report.model_dump_json(indent=2) + "\n"))
    if plot is not None:
        from catp.calibration.accuracy.curve import draw_curve

        write_file(plot, lambda file: draw_curve(report, file))
    if json_output:
        print_json_line(report.model_dump_json())


@contextmanager
def _open(
    folder: Path, provider: str, engines: str | None, cluster: str | None, workers: int | None
) -> Iterator[Pipeline | Workers]:
    """The bundle, here or on a cluster."""
    with ExitStack() as ends:
        with busy("load the bundle"):
            if cluster is None:
                opened: Pipeline | Workers = Pipeline.load(folder, provider, engines=engines)
            else:
                opened = ends.enter_context(open_workers(folder, cluster, workers, provider, engines))
        yield opened


def _evaluate_retrieval(
    pipeline: Pipeline,
    captions: Captions,
    settings: Sequence[Setting],
    rerank: int | None,
    seed: int,
    batch_size: int,
    output: Path | None,
    json_output: bool,
) -> None:
    """Recall on pictures with captions, printed and written."""
    rounds = 1 if rerank == 0 or not pipeline.matching.has_head else 2
    total, done = rounds * len(captions.images) * len(settings), 0
    with counted("pictures") as advance:

        def more(count: int) -> None:
            nonlocal done
            done += count
            advance(done, total)

        found = evaluate_retrieval(pipeline, captions, settings, rerank, seed, batch_size, more)
    wide_console().print(recall_table(found))
    if output is not None:
        write_file(output, lambda file: file.write_text(found.model_dump_json(indent=1) + "\n"))
    if json_output:
        print_json_line(found.model_dump_json())


def _check_outputs(predictions: Path | None, output: Path | None, plot: Path | None) -> None:
    """Before hours of work rather than after."""
    for option, path in (("--predictions", predictions), ("--output", output)):
        check_file_output(option, path)
    check_plot(plot)


def _check_nothing_pruned(
    manifest: Manifest, ratios: tuple[float, ...] | None, masses: tuple[float, ...], positions: str | None
) -> None:
    """Raises UsageError where more is asked of a bundle that votes for no tokens than its accuracy."""
    asked = {"ratios": any(ratios or ()), "keep mass": bool(masses), "positions": positions not in (None, "original")}
    if given := [name for name, is_given in asked.items() if is_given]:
        raise UsageError(
            f"{', '.join(given)}: {manifest.model.family} has no query tokens to leave out; leave the option out"
        )


def _choose_methods(manifest: Manifest, text: str | None, alone: bool, all_: bool) -> tuple[str, ...]:
    own = manifest.vote.method if manifest.vote else "none"
    if text is not None:
        return check_methods(manifest, [part.strip() for part in text.split(",")])
    if all_:
        return (*score_outputs(manifest), *([RANDOM] if manifest.vote else []))
    return (own,) if alone or own in ("none", RANDOM) else (own, RANDOM)


def _choose_positions(choice: str | None, manifest: Manifest, both: bool) -> tuple[Positions, ...]:
    every: tuple[Positions, ...] = get_args(Positions)
    if choice is None:
        both = both and manifest.vote is not None
        return every if both else (position_mode(manifest, None),)
    return tuple(mode for mode in every if choice in (mode, "both"))


app = make_app(evaluate_bundle)
