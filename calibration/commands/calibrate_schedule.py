"""catp-calibrate schedule: how many image tokens each layer of a vision encoder keeps, for a share of its work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from catp.calibration.accuracy.evaluation import BATCH_SIZE
from catp.calibration.commands.source import is_bundle
from catp.calibration.data import open_data
from catp.calibration.data.demo import DEMO_SEED
from catp.calibration.data.halves import half
from catp.calibration.encoder.answering import Asked, answer_all, check_encoder
from catp.calibration.encoder.counting import find_schedule
from catp.calibration.encoder.report import EncoderReport, EncoderSetting, describe_kept, make_report
from catp.calibration.encoder.tables import score_table
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

_CHECKPOINT_FILES = ("config.json", "tokenizer.json", "preprocessor_config.json")


def calibrate_schedule(
    source: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A bundle in the schedule form, whose manifest gets the schedule.")
    ],
    flops: Annotated[float, typer.Option(help="Share of the dense encoder's work that remains, such as 0.5.")],
    against: Annotated[
        Path,
        typer.Option(
            metavar="BUNDLE",
            help="The same checkpoint, for comparison: dense, or in the dynamic form (madtp), which then also says how "
            "many tokens each layer keeps. Otherwise every layer keeps the same share.",
        ),
    ],
    data: Annotated[str, typer.Option(metavar="demo|easy-vqa|FOLDER|JSONL", help="What to ask, as for catp-eval.")] = (
        "demo"
    ),
    max_accuracy_drop: Annotated[
        float, typer.Option(help="What pruning may cost, of 1, at the worse end of the 95 % interval.")
    ] = 0.02,
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

    Tokens are counted on one half of the images; the other half confirms that accuracy falls by no more than allowed.
    What is not confirmed changes nothing and exits 1.

    catp-calibrate schedule catp-bundle --flops 0.5 --against dynamic-bundle --data vqav2 --fraction 0.1
    """
    if not 0 < max_accuracy_drop < 1:
        raise UsageError(f"max accuracy drop {max_accuracy_drop}: of 1, so 0 < drop < 1, such as 0.02 for two points")
    if not 0 < flops < 1:
        raise UsageError(f"flops {flops:g}: a share of the encoder's work, above 0 and below 1")
    check_file_output("--report", report)
    for given in (source, against):
        if not is_bundle(str(given)):
            raise UsageError(f"{given}: no bundle; give a folder that catp-export wrote")
    asked = open_data(data).subset(limit, fraction, seed)
    with busy("load the bundles"):
        pipeline, reference = Pipeline.load(source, provider), Pipeline.load(against, provider)
    spec = _check(pipeline, reference)
    dense = Asked(reference, EncoderWish())
    settings, compared = [EncoderSetting(name="dense")], [dense]
    counted = f"each layer keeps the same share ({flops:g} of the work)"
    kept = even_schedule(spec, flops)
    if reference.manifest.encoder_pruning is not None:
        compared[0] = Asked(reference, EncoderWish(temperature=0.0))
        with busy("count tokens"):
            found = find_schedule(reference, half(asked, seed, "search"), flops, pictures)
        counted = f"mean counts of {found.pictures} pictures of {asked.name} at temperature {found.temperature:.4g}"
        settings += [
            EncoderSetting(name="dynamic", temperature=found.temperature),
            EncoderSetting(name="schedule, same share in each layer", kept_tokens=kept),
        ]
        compared += [
            Asked(reference, EncoderWish(temperature=found.temperature)),
            Asked(pipeline, EncoderWish(kept_tokens=kept)),
        ]
        kept = found.kept_tokens
    settings.append(EncoderSetting(name="schedule", kept_tokens=kept))
    compared.append(Asked(pipeline, EncoderWish(kept_tokens=kept)))
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("confirmation", total=len(asked) // 2)
        answered = answer_all(
            half(asked, seed, "confirmation"),
            compared,
            asked.metric,
            batch_size,
            lambda done: progress.advance(task, done),
        )
    result = make_report(pipeline.manifest, asked, seed, settings, answered)
    console.print(score_table(result))
    if result.skipped:
        console.print(f"[yellow]warning:[/] {result.skipped:,} questions could not be asked; catp-eval says why")
    if report is not None:
        write_file(report, lambda file: file.write_text(result.model_dump_json(indent=1) + "\n"))
    if json_output:
        print_json_line(result.model_dump_json())
    _apply(source, pipeline.manifest, kept, counted, result, max_accuracy_drop)


def _check(pipeline: Pipeline, reference: Pipeline) -> EncoderPruningSpec:
    """The bundle's pruning; raises UsageError where it has none, or the reference can't stand beside it."""
    check_encoder(pipeline, "catp-calibrate schedule")
    spec, other = pipeline.manifest.encoder_pruning, reference.manifest.encoder_pruning
    assert spec is not None
    if spec.form != "schedule":
        raise UsageError(
            f"{pipeline.bundle.path}: its encoder counts tokens for itself (dynamic form); give one that was exported "
            "with --encoder-flops, and this one with --against"
        )
    if other is not None and (other.form != "dynamic" or other.layers != spec.layers):
        raise UsageError(
            f"--against {reference.bundle.path}: it has a schedule, or prunes in other layers; give a dense bundle, or "
            f"one in the dynamic form that prunes in layers {', '.join(map(str, spec.layers))}"
        )
    if other is not None and (other.rule, other.merge) != (spec.rule, spec.merge):
        raise UsageError(
            f"--against {reference.bundle.path}: it prunes by {other.rule} ({other.merge}), not by {spec.rule} "
            f"({spec.merge}); export both with the same rule"
        )
    if _identity(pipeline.manifest) != _identity(reference.manifest):
        raise UsageError(
            f"--against {reference.bundle.path}: it is another checkpoint, or in another precision; export the same one"
        )
    return spec


def _identity(manifest: Manifest) -> tuple[object, ...]:
    """The marks that two bundles of one checkpoint share: its files, and the weights that nothing prunes."""
    files = {file.path: file.sha256 for file in manifest.files}
    last = manifest.graphs[manifest.chain.graphs[-1]]
    weights = (last.external_data or last.file).sha256
    return manifest.precision, weights, *(files.get(name) for name in _CHECKPOINT_FILES)


def _apply(
    source: Path, manifest: Manifest, kept: tuple[int, ...], counted: str, found: EncoderReport, budget: float
) -> None:
    """The schedule in the manifest.

    Raises:
        CatpError: accuracy may fall by more than the budget; nothing is changed.
    """
    before, after = found.scores[0], found.scores[-1]
    if not before.accuracy:
        raise CatpError(
            f"data {found.data}: none of {found.questions:,} questions is answered right by the dense encoder, so that "
            "nothing can be lost; nothing was changed. Give questions that this model can answer (--data)"
        )
    if after.low < -budget:
        raise CatpError(
            f"schedule {describe_kept(kept)} is not confirmed: it costs {-100 * after.difference:.1f} points and may "
            f"cost {-100 * after.low:.1f}, the budget is {100 * budget:g}; nothing was changed. Try a larger --flops, "
            "more questions, or a larger --max-accuracy-drop"
        )
    spec = manifest.encoder_pruning
    assert spec is not None
    confirmed = ScheduleConfirmation(
        data=found.data,
        metric=found.metric,
        seed=found.seed,
        questions=found.questions,
        before=before.accuracy,
        after=after.accuracy,
        difference=after.difference,
        interval_95=after.difference_95,
    )
    changed = spec.model_copy(
        update={
            "kept_tokens": kept,
            "gflops_pruned": spec.gflops(kept),
            "source": f"catp-calibrate schedule: {counted}",
            "confirmed": confirmed,
        }
    )
    write_manifest(source, manifest.model_copy(update={"encoder_pruning": changed}), replaces=manifest)
    console.print(
        f"{escape(str(source))}: by default its vision encoder now keeps {describe_kept(kept)} image tokens, "
        f"{after.share:.0%} of the work",
        soft_wrap=True,
    )
