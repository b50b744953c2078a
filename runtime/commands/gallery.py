"""The part of catp-match that searches in a folder of pictures and a file of texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catp.runtime.commands.console import busy, console, escape, print_json_line, print_line
from catp.runtime.errors import ImageError, UsageError
from catp.runtime.files import is_dir, write_file
from catp.runtime.image_sides.pruned_encoder import EncoderWish
from catp.runtime.inputs.videos import natural_order
from catp.runtime.pipeline import Pipeline
from catp.runtime.retrieval.gallery import embed_gallery, embed_texts, read_texts, similarities
from catp.runtime.retrieval.ranking import Found, check_rerank, search


def pictures_in(folder: Path) -> list[Path]:
    """The files of a folder in the natural order of their names, hidden ones left out; folders in it are not opened.

    Raises:
        UsageError: there is none, or the folder can't be read.
    """
    if not is_dir(folder):
        raise UsageError(f"--images {folder}: no such folder; give one with pictures")
    try:
        found = [path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError as error:
        raise UsageError(f"--images {folder}: it can't be read ({error.strerror})") from None
    if not found:
        raise UsageError(f"--images {folder}: no file in it; give a folder with pictures")
    return sorted(found, key=lambda path: natural_order(path.name))


def search_gallery(
    pipeline: Pipeline,
    paths: Sequence[Path],
    texts: Sequence[str],
    best: int,
    rerank: int,
    ratio: float | None,
    encoder: EncoderWish,
    batch: int,
    output: Path | None,
    as_json: bool,
) -> None:
    """Search both ways, print the best of each picture and of each text, and write all scores where asked.

    Raises:
        UsageError: an argument can't be used, or no picture can be read.
        CatpError: a graph fails, or the output can't be written.
    """
    ids = read_texts(pipeline, texts)
    check_rerank(pipeline, rerank)

    def skip(number: int, error: ImageError) -> None:
        console.print(f"[yellow]warning:[/] {escape(str(error))}; it is left out", soft_wrap=True)

    with busy("embed the pictures"):
        gallery = embed_gallery(pipeline, paths, ratio, encoder, rerank > 0, batch, skip)
    with busy("embed the texts"):
        similarity = similarities(gallery.vectors, embed_texts(pipeline, ids))
    with busy("rank"):
        found = search(gallery, ids, similarity, best, rerank)
    read = [str(source) for source in gallery.sources]
    if output is not None:
        _write(output, found, read, texts)
    for heading, ranking, rows, columns in (
        ("image", found.texts, read, list(texts)),
        ("text", found.pictures, list(texts), read),
    ):
        for row, places, scores in zip(rows, ranking.best[:, :best].tolist(), ranking.scores[:, :best].tolist()):
            if as_json:
                hits = [{"score": score, heading_of(heading): columns[at]} for at, score in zip(places, scores)]
                print_json_line(json.dumps({heading: row, "best": hits}))
            else:
                print_line(f"{heading} {row}")
                for at, score in zip(places, scores):
                    print_line(f"  {score:+.4f}  {columns[at]}")


def heading_of(other: str) -> str:
    """The kind of things that are the best of an image, or of a text."""
    return "text" if other == "image" else "image"


def _write(output: Path, found: Found, images: Sequence[str], texts: Sequence[str]) -> None:
    arrays: dict[str, Any] = {
        "images": np.array(images),
        "texts": np.array(list(texts)),
        "similarity": found.similarity,
        "texts_of_images": found.texts.best,
        "scores_of_images": found.texts.scores,
        "images_of_texts": found.pictures.best,
        "scores_of_texts": found.pictures.scores,
    }

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)

    write_file(output, write)
