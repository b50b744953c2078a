"""catp-run: answer questions about images from a bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from catp.runtime.commands.console import busy, make_app, print_json_line
from catp.runtime.engines import PROVIDERS
from catp.runtime.errors import UsageError
from catp.runtime.manifest import Positions
from catp.runtime.pipeline import Pipeline


def run(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export.")],
    image: Annotated[list[Path], typer.Option("--image", help="Image file; repeat with --prompt for a batch.")],
    prompt: Annotated[
        list[str], typer.Option("--prompt", help="Text for the image before it; an empty one asks for a caption.")
    ],
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of query tokens removed, 0 <= ratio < 1. Default: the bundle's.")
    ] = None,
    keep_mass: Annotated[
        float | None,
        typer.Option(help="Instead of a ratio: keep the fewest tokens with this share of the votes, for each image."),
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
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object per pair on standard output.")] = False,
) -> None:
    """Answer questions about images from a bundle.

    Several --image/--prompt pairs run as one batch:

    catp-run catp-bundle --image a.png --prompt "Question: what is in the center? Answer:"
    """
    if len(image) != len(prompt):
        raise UsageError(f"{len(image)} --image and {len(prompt)} --prompt: give one prompt per image")
    with busy("load the bundle"):
        pipeline = Pipeline.load(bundle, provider, threads=threads, engines=engines)
    with busy("answer"):
        answers = pipeline.generate(image, prompt, ratio, positions, max_new_tokens, keep_mass)
    for path, answer in zip(image, answers):
        if json_output:
            print_json_line(json.dumps(answer.to_dict()))
        else:
            typer.echo(answer.answer if len(answers) == 1 else f"{path}: {answer.answer}")


app = make_app(run)
