"""catp-match: how well texts fit images, by a bundle of a retrieval model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.console import busy, make_app, print_json_line, print_line
from catp.runtime.commands.encoder_options import FlopsOption, KeptOption, parse_counts
from catp.runtime.commands.gallery import pictures_in, search_gallery
from catp.runtime.commands.lists import read_list, read_list_file
from catp.runtime.commands.loading_options import MaxMemoryOption, RehashOption, check_bundle
from catp.runtime.errors import UsageError
from catp.runtime.files import check_file_output
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.matching.base import Match
from catp.runtime.matching.two_images import Verdict
from catp.runtime.matching.zero_shot import TEMPLATE, Classes, check_classes
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers import PROVIDERS
from catp.runtime.retrieval.gallery import BATCH

BEST = 5


def match(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export, of a retrieval model.")],
    image: Annotated[
        list[Path] | None,
        typer.Option("--image", help="Image file; repeat with --text for a batch. A model for NLVR2 takes two."),
    ] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="What may be seen in the image before it.")] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES|FILE",
            help="Instead of texts, of a CLIP: classes, separated by commas, or in a .txt file with one in each line "
            "(.json: a list). Each image gets a probability for each.",
        ),
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Sentence with {{}} where a class stands; of several the mean is taken. Default: {TEMPLATE!r}."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Search: all pictures of a folder, each embedded once. With --texts."),
    ] = None,
    texts: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Search: a .txt file with a text in each line, or a list as .json."),
    ] = None,
    rerank: Annotated[
        int | None,
        typer.Option(
            min=0, help="Search: so many of the best are read again by the head that sees text and image at once."
        ),
    ] = None,
    best: Annotated[
        int | None, typer.Option(min=1, help=f"Search: how many are printed of each. Default: {BEST}.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="NPZ", help="Search: a file for all similarities and the best."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help=f"Search: pictures at a time. Default: {BATCH}.")
    ] = None,
    ratio: Annotated[
        float | None, typer.Option(help="Fraction of query tokens removed, 0 <= ratio < 1. Default: the bundle's.")
    ] = None,
    encoder_flops: FlopsOption = None,
    encoder_kept: KeptOption = None,
    provider: Annotated[str, typer.Option(help=f"What executes the graphs: {', '.join(PROVIDERS)}.")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads within an operator.")] = None,
    max_memory: MaxMemoryOption = None,
    rehash: RehashOption = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="ONNX Runtime's log on standard error.")] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="One JSON object per pair, image or text on standard output.")
    ] = False,
) -> None:
    """Score texts against images: the probability that they belong together, and their contrastive similarity.

    One --image serves all texts. Or sort images into classes, search in a folder, or judge statements about two images:

    catp-match catp-bundle --image a.png --text "a red circle" --text "two dogs"

    catp-match clip-bundle --image a.png --classes "cat,dog"

    catp-match catp-bundle --images pictures --texts captions.txt --rerank 16

    catp-match nlvr-bundle --image a.png --image b.png --text "both pictures have a red circle"
    """
    pairs, searched = {"--image": image, "--text": text}, {"--images": images, "--texts": texts}
    of_search = {"--rerank": rerank, "--best": best, "--output": output, "--batch-size": batch_size}
    of_classes = {"--classes": classes, "--template": template}
    encoder = EncoderWish(parse_counts(encoder_kept), encoder_flops)

    def load(read: list[str]) -> Pipeline:
        check_bundle(bundle, provider, max_memory, read)
        with busy("load the bundle"):
            return Pipeline.load(bundle, provider, threads=threads, verbose=verbose, rehash=rehash)

    if images is not None or texts is not None:
        _check_options({**pairs, **of_classes}, searched, "a search")
        assert images is not None and texts is not None
        paths, words = pictures_in(images), read_list_file("--texts", texts)
        if not words:
            raise UsageError(f"--texts {texts}: no text in it; give one in each line")
        check_file_output("--output", output)
        if output is not None and output.suffix != ".npz":
            raise UsageError(f"--output {output}: scores are written as numpy's .npz; give such a name")
        search_gallery(
            load(words[:BATCH]),
            paths,
            words,
            best or BEST,
            rerank or 0,
            ratio,
            encoder,
            batch_size or BATCH,
            output,
            json_output,
        )
    elif classes is not None or template:
        unfit = {"--text": text, **of_search, "--ratio": ratio}
        _check_options(unfit, {"--image": image, "--classes": classes}, "classes")
        assert image and classes is not None
        names, sentences = read_list("--classes", classes), template or [TEMPLATE]
        check_classes(names, sentences)
        pipeline = load(names[:BATCH])
        with busy("classify"):
            classified = pipeline.classify(image, names, sentences, encoder)
        for path, each in zip(image, classified):
            _print_classes(path, each, json_output)
    else:
        _check_options({"--template": template, **of_search}, pairs, "pairs")
        assert image and text
        if open_bundle(bundle, verify=False).manifest.model.language == "two-images":
            _check_two(image, ratio)
            pipeline = load(text)
            with busy("judge"):
                verdicts = pipeline.judge([(image[0], image[1])] * len(text), text, encoder)
            for line, verdict in zip(text, verdicts):
                _print_verdict(image, line, verdict, json_output)
            return
        sources = image * len(text) if len(image) == 1 else image
        if len(sources) != len(text):
            raise UsageError(
                f"{len(image)} --image and {len(text)} --text: give one text per image, or one image for all"
            )
        pipeline = load(text)
        with busy("score"):
            matches = pipeline.match(sources, text, ratio, encoder)
        for path, line, found in zip(sources, text, matches):
            _print_match(path, line, found, json_output)


def _check_options(unfit: Mapping[str, object], needed: Mapping[str, object], what: str) -> None:
    """Raises UsageError where an option is given that does not go with the others, or one is missing."""
    if given := [name for name, value in unfit.items() if value not in (None, [])]:
        raise UsageError(f"{', '.join(given)}: not with {' and '.join(needed)}; leave it out")
    if missing := [name for name, value in needed.items() if value in (None, [])]:
        raise UsageError(
            f"{', '.join(missing)} missing for {what}; give --image with --text or --classes, or --images with --texts"
        )


def _check_two(images: Sequence[Path], ratio: float | None) -> None:
    """Raises UsageError where a model of two images is given another number of them, or asked to prune query tokens."""
    if len(images) != 2:
        raise UsageError(
            f"{len(images)} --image: this model judges statements about two images; give --image twice, the left "
            "one first, and any number of --text"
        )
    if ratio is not None:
        raise UsageError(f"--ratio {ratio:g}: this model has no query tokens to leave out; leave it out")


def _print_match(image: Path, text: str, found: Match, json_output: bool) -> None:
    if json_output:
        print_json_line(json.dumps({"image": str(image), "text": text, **found.to_dict()}))
    else:
        likely = "" if found.probability is None else f"match {found.probability:.4f}  "
        print_line(f"{likely}similarity {found.similarity:+.4f}  {image}: {text}")


def _print_classes(image: Path, found: Classes, json_output: bool) -> None:
    if json_output:
        print_json_line(json.dumps({"image": str(image), **found.to_dict()}))
        return
    print_line(f"{image}: {found.label}")
    for name, share in sorted(found.probabilities.items(), key=lambda pair: -pair[1])[:BEST]:
        print_line(f"  {share:.4f}  {name}")


def _print_verdict(images: Sequence[Path], text: str, verdict: Verdict, json_output: bool) -> None:
    if json_output:
        names = [str(path) for path in images]
        print_json_line(json.dumps({"images": names, "text": text, **verdict.to_dict()}))
    else:
        said = "true" if verdict.true else "false"
        print_line(f"{said} {verdict.probability:.4f}  {', '.join(map(str, images))}: {text}")


app = make_app(match)
