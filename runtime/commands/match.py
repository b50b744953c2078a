"""catp-match: how well texts fit images, by a bundle of a retrieval model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from catp.runtime.commands.console import busy, make_app, print_json_line, print_line
from catp.runtime.commands.encoder_options import FlopsOption, KeptOption, parse_counts
from catp.runtime.commands.gallery import pictures_in, search_gallery
from catp.runtime.commands.lists import read_list, read_list_file
from catp.runtime.commands.memory_option import MaxMemoryOption, check_bundle
from catp.runtime.errors import UsageError
from catp.runtime.files import check_file_output
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.matching.zero_shot import TEMPLATE, check_classes
from catp.runtime.pipeline import Pipeline
from catp.runtime.providers import PROVIDERS
from catp.runtime.retrieval.gallery import BATCH

BEST = 5


def match(
    bundle: Annotated[Path, typer.Argument(help="Folder written by catp-export, of a retrieval model.")],
    image: Annotated[
        list[Path] | None, typer.Option("--image", help="Image file; repeat with --text for a batch.")
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
    verbose: Annotated[bool, typer.Option("--verbose", help="ONNX Runtime's log on standard error.")] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="One JSON object per pair, image or text on standard output.")
    ] = False,
) -> None:
    """Score texts against images: the probability that they belong together, and their contrastive similarity.

    One --image serves all texts. Or sort images into classes, or search in a folder:

    catp-match catp-bundle --image a.png --text "a red circle" --text "two dogs"

    catp-match clip-bundle --image a.png --classes "cat,dog"

    catp-match catp-bundle --images pictures --texts captions.txt --rerank 16
    """
    pairs, searched = {"--image": image, "--text": text}, {"--images": images, "--texts": texts}
    of_search = {"--rerank": rerank, "--best": best, "--output": output, "--batch-size": batch_size}
    of_classes = {"--classes": classes, "--template": template}
    encoder = EncoderWish(parse_counts(encoder_kept), encoder_flops)
    if images is not None or texts is not None:
        _check_options({**pairs, **of_classes}, searched, "a search")
        assert images is not None and texts is not None
        paths, words = pictures_in(images), read_list_file("--texts", texts)
        if not words:
            raise UsageError(f"--texts {texts}: no text in it; give one in each line")
        check_file_output("--output", output)
        if output is not None and output.suffix != ".npz":
            raise UsageError(f"--output {output}: scores are written as numpy's .npz; give such a name")
        pipeline = _load(bundle, provider, threads, max_memory, verbose, words[:BATCH])
        search_gallery(
            pipeline, paths, words, best or BEST, rerank or 0, ratio, encoder, batch_size or BATCH, output, json_output
        )
        return
    if classes is not None or template:
        _check_options(
            {"--text": text, **of_search, "--ratio": ratio}, {"--image": image, "--classes": classes}, "classes"
        )
        assert image and classes is not None
        names, sentences = read_list("--classes", classes), template or [TEMPLATE]
        check_classes(names, sentences)
        pipeline = _load(bundle, provider, threads, max_memory, verbose, names[:BATCH])
        with busy("classify"):
            classified = pipeline.classify(image, names, sentences, encoder)
        for path, each in zip(image, classified):
            if json_output:
                print_json_line(json.dumps({"image": str(path), **each.to_dict()}))
                continue
            print_line(f"{path}: {each.label}")
            for name, share in sorted(each.probabilities.items(), key=lambda pair: -pair[1])[:BEST]:
                print_line(f"  {share:.4f}  {name}")
        return
    _check_options({"--template": template, **of_search}, pairs, "pairs")
    assert image and text
    sources = image * len(text) if len(image) == 1 else image
    if len(sources) != len(text):
        raise UsageError(f"{len(image)} --image and {len(text)} --text: give one text per image, or one image for all")
    pipeline = _load(bundle, provider, threads, max_memory, verbose, text)
    with busy("score"):
        matches = pipeline.match(sources, text, ratio, encoder)
    for path, line, found in zip(sources, text, matches):
        if json_output:
            print_json_line(json.dumps({"image": str(path), "text": line, **found.to_dict()}))
        else:
            likely = "" if found.probability is None else f"match {found.probability:.4f}  "
            print_line(f"{likely}similarity {found.similarity:+.4f}  {path}: {line}")


def _check_options(unfit: Mapping[str, object], needed: Mapping[str, object], what: str) -> None:
    """Raises UsageError where an option is given that does not go with the others, or one is missing."""
    if given := [name for name, value in unfit.items() if value not in (None, [])]:
        raise UsageError(f"{', '.join(given)}: not with {' and '.join(needed)}; leave it out")
    if missing := [name for name, value in needed.items() if value in (None, [])]:
        raise UsageError(
            f"{', '.join(missing)} missing for {what}; give --image with --text or --classes, or --images with --texts"
        )


def _load(
    bundle: Path, provider: str, threads: int | None, max_memory: float | None, verbose: bool, texts: list[str]
) -> Pipeline:
    check_bundle(bundle, provider, max_memory, texts)
    with busy("load the bundle"):
        return Pipeline.load(bundle, provider, threads=threads, verbose=verbose)


app = make_app(match)
