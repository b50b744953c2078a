"""catp-run: answer questions about images from a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from catp.runtime.bundle.generation_settings import Overrides
from catp.runtime.bundle.manifest import Positions
from catp.runtime.commands.console import busy, make_app, print_json_line, print_line, print_result
from catp.runtime.commands.encoder_options import ENCODER_PANEL, FlopsOption, KeptOption, parse_counts
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
from catp.runtime.commands.loading_options import MaxMemoryOption, RehashOption, check_bundle
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers import PROVIDERS
from catp.runtime.system.printable import printable


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export.")],
    image: Annotated[
        list[Path],
        typer.Option(
            "--image",
            help="Image file, or folder of frames for a model of videos; repeat with --prompt for a batch, or give one "
            "for all prompts.",
        ),
    ],
    prompt: Annotated[
        list[str], typer.Option("--prompt", help="Text for the image before it; an empty one asks for a caption.")
    ],
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of query tokens removed, 0 <= ratio < 1. Default: the bundle's.")
    ] = None,
    keep_mass: Annotated[
        float | None,
        typer.Option(
            help="Instead of a ratio: keep the fewest tokens with this share of the votes, for each image or frame."
        ),
    ] = None,
    positions: Annotated[
        Positions | None, typer.Option(help="Positions of kept tokens. Default: the bundle's.")
    ] = None,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens generated at most. Default: the bundle's.")
    ] = None,
    engines: Annotated[
        str | None, typer.Option(help="Engine set, as catp-inspect names it. Default: the newest that fits.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads within an operator.")] = None,
    max_memory: MaxMemoryOption = None,
    rehash: RehashOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="ONNX Runtime's log on standard error.")] = False,
    stream: Annotated[bool, typer.Option("--stream", help="Print the answer to one prompt while it grows.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object per prompt on standard output.")] = False,
    encoder_flops: FlopsOption = None,
    encoder_kept: KeptOption = None,
    encoder_temperature: Annotated[
        float | None,
        typer.Option(help="Of an encoder in the dynamic form; 0 prunes nothing.", rich_help_panel=ENCODER_PANEL),
    ] = None,
    answers: Annotated[
        str | None,
        typer.Option(
            metavar="TEXTS|FILE",
            help='Choose from these in place of writing: "yes,no,2", a .txt file with one in each line, or a .json '
            "file with a list. For models that answer by rank (BLIP).",
        ),
    ] = None,
    sample: SampleOption = None,
    temperature: TemperatureOption = None,
    top_k: TopKOption = None,
    top_p: TopPOption = None,
    seed: Annotated[
        int | None, typer.Option(help="Draw the same tokens every time.", rich_help_panel=CHOICE_PANEL)
    ] = None,
    num_beams: BeamsOption = None,
    length_penalty: LengthPenaltyOption = None,
    early_stopping: EarlyStoppingOption = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1: tokens that prompt or answer have are less likely.", rich_help_panel=CHOICE_PANEL),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None, typer.Option(help="No so many tokens in a row twice; 0: off.", rich_help_panel=CHOICE_PANEL)
    ] = None,
    min_new_tokens: MinNewTokensOption = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            "--stop", help="Text that ends an answer and is left out of it; repeatable.", rich_help_panel=CHOICE_PANEL
        ),
    ] = None,
) -> None:
    """Answer questions about images from a bundle.

    Several --image/--prompt pairs run as one batch, several prompts about one --image as well, which is encoded once.
    Tokens are chosen as the bundle says, which is as in generate() of Hugging Face, unless an option says otherwise:

    catp-run catp-bundle --image a.png --prompt "Question: what is in the center? Answer:"
    """
    images = image * len(prompt) if len(image) == 1 else image
    if len(images) != len(prompt):
        raise UsageError(
            f"{len(image)} --image and {len(prompt)} --prompt: give one prompt per image, or one image for all"
        )
    if stream and (len(prompt) > 1 or json_output):
        raise UsageError("--stream prints one answer as text: give one --prompt, and no --json")
    overrides: Overrides = {
        "do_sample": sample,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "early_stopping": early(early_stopping),
        "repetition_penalty": repetition_penalty,
        "no_repeat_ngram_size": no_repeat_ngram,
        "min_new_tokens": min_new_tokens,
        "stop_strings": stop or None,
    }
    encoder = EncoderWish(parse_counts(encoder_kept), encoder_flops, encoder_temperature)
    given = None if answers is None else read_list("--answers", answers)
    if given is not None:
        unfit = [f"--{name.replace('_', '-')}" for name, value in overrides.items() if value is not None]
        unfit += ["--stream"] * stream + ["--max-new-tokens"] * (max_new_tokens is not None)
        unfit += (
            ["--ratio"] * bool(ratio) + ["--keep-mass"] * (keep_mass is not None) + ["--positions"] * bool(positions)
        )
        if unfit:
            raise UsageError(f"--answers ranks texts and writes none: leave out {', '.join(unfit)}")
    check_bundle(bundle, provider, max_memory, prompt, num_beams, max_new_tokens)
    with busy("load the bundle"):
        pipeline = Pipeline.load(bundle, provider, threads=threads, engines=engines, verbose=verbose, rehash=rehash)
    if given is not None:
        with busy("rank the answers"):
            rankings = pipeline.rank(images, prompt, given, encoder=encoder)
        for path, text, ranking in zip(images, prompt, rankings):
            if json_output:
                print_json_line(json.dumps([found.to_dict() for found in ranking]))
            else:
                _print_answer(path, text, ranking[0].answer, len(prompt), len(image))
        return
    if stream:
        for piece in pipeline.stream(
            images[0], prompt[0], ratio, positions, max_new_tokens, keep_mass, encoder=encoder, **overrides
        ):
            print_result(printable(piece))
        print_line()
        return
    with busy("answer"):
        found = pipeline.generate(
            images, prompt, ratio, positions, max_new_tokens, keep_mass, encoder=encoder, **overrides
        )
    for path, text, answer in zip(images, prompt, found):
        if json_output:
            print_json_line(json.dumps(answer.to_dict()))
        else:
            _print_answer(path, text, answer.answer, len(prompt), len(image))


def _print_answer(path: Path, prompt: str, answer: str, prompts: int, images: int) -> None:
    """One line, which begins with what tells it from the others."""
    if prompts == 1:
        print_line(answer)
    else:
        print_line(f"{path}: {answer}" if images > 1 else f"{prompt} {answer}".lstrip())


app = make_app(run)
