"""catp-match: how well texts fit images, by a bundle of a retrieval model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.console import busy, make_app, print_json_line, print_line
from catp.runtime.commands.encoder_options import FlopsOption, KeptOption, parse_counts
from catp.runtime.commands.memory_option import MaxMemoryOption, check_bundle
from catp.runtime.errors import UsageError
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.matching.two_images import Verdict
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers import PROVIDERS


def match(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export, of a retrieval model.")],
    image: Annotated[
        list[Path],
        typer.Option("--image", help="Image file; repeat with --text for a batch. A model for NLVR2 takes two."),
    ],
    text: Annotated[list[str], typer.Option("--text", help="What may be seen in the image or images before it.")],
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of query tokens removed, 0 <= ratio < 1. Default: the bundle's.")
    ] = None,
    encoder_flops: FlopsOption = None,
    encoder_kept: KeptOption = None,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads within an operator.")] = None,
    max_memory: MaxMemoryOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="ONNX Runtime's log on standard error.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON object per pair on standard output.")] = False,
) -> None:
    """Score texts against images: the probability that they belong together, and their contrastive similarity.

    One --image serves all texts:

    catp-match catp-bundle --image a.png --text "a red circle" --text "two dogs"

    A bundle of a model for NLVR2 says whether statements about two images are true:

    catp-match nlvr-bundle --image a.png --image b.png --text "both pictures have a red circle"
    """
    encoder = EncoderWish(parse_counts(encoder_kept), encoder_flops)
    if open_bundle(bundle, verify=False).manifest.model.language == "two-images":
        if len(image) != 2:
            raise UsageError(
                f"{len(image)} --image: this model judges statements about two images; give --image twice, the left "
                "one first, and any number of --text"
            )
        if ratio is not None:
            raise UsageError(f"--ratio {ratio:g}: this model has no query tokens to leave out; leave it out")
        check_bundle(bundle, provider, max_memory, text)
        with busy("load the bundle"):
            pipeline = Pipeline.load(bundle, provider, threads=threads, verbose=verbose)
        with busy("judge"):
            verdicts = pipeline.judge([(image[0], image[1])] * len(text), text, encoder)
        for words, verdict in zip(text, verdicts):
            _print_verdict(image, words, verdict, json_output)
        return
    images = image * len(text) if len(image) == 1 else image
    if len(images) != len(text):
        raise UsageError(f"{len(image)} --image and {len(text)} --text: give one text per image, or one image for all")
    check_bundle(bundle, provider, max_memory, text)
    with busy("load the bundle"):
        pipeline = Pipeline.load(bundle, provider, threads=threads, verbose=verbose)
    with busy("score"):
        matches = pipeline.match(images, text, ratio, encoder)
    for path, words, found in zip(images, text, matches):
        if json_output:
            print_json_line(json.dumps({"image": str(path), "text": words, **found.to_dict()}))
        else:
            print_line(f"match {found.probability:.4f}  similarity {found.similarity:+.4f}  {path}: {words}")


def _print_verdict(images: Sequence[Path], text: str, verdict: Verdict, json_output: bool) -> None:
    if json_output:
        names = [str(path) for path in images]
        print_json_line(json.dumps({"images": names, "text": text, **verdict.to_dict()}))
    else:
        said = "true" if verdict.true else "false"
        print_line(f"{said} {verdict.probability:.4f}  {', '.join(map(str, images))}: {text}")


app = make_app(match)
