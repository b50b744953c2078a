"""The table of families and commands in docs/families.md: what each command says to a family's bundle, asked of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from documents import ROOT, table, text_of
from typer.testing import CliRunner

from catp.calibration.commands.bench import app as bench
from catp.calibration.commands.calibrate import app as calibrate
from catp.calibration.commands.eval import app as evaluate
from catp.calibration.commands.explain import app as explain
from catp.export.commands.build import app as build
from catp.export.commands.export import app as export
from catp.export.demo import scenes
from catp.runtime.bundle.folder import open_bundle
from catp.runtime.commands.match import app as match
from catp.runtime.commands.run import app as run
from catp.runtime.commands.serve import app as serve
from catp.runtime.pipeline import Pipeline

PAGE = "docs/families.md"
HEADING = "family | `catp-export`"
WRITE = "CATP_WRITE_TABLES"
"""Set in the environment, rows are written to the page instead of compared with it."""

COLUMNS = ("export", "run", "match", "serve", "eval", "explain", "ratio", "schedule", "precision", "bench", "build")

NOTES = {
    "a": "No query tokens, so nothing votes. Where it sees one image and its encoder prunes, `catp-explain` draws the "
    "patches that stay.",
    "b": "It scores given texts, and writes none.",
    "c": "It writes texts, and scores none.",
    "d": "It reads two images, and a request to a server brings one.",
    "e": "It answers no questions: a caption goes on from how it begins. Data of your own has both (`.jsonl`).",
    "f": "It answers no questions: data are pictures with captions (`.json`).",
    "g": "Of a bundle exported with `--diagnostics`, which has what is drawn among its outputs.",
}
REASONS = (
    ("votes for no query tokens", "a"),
    ("it scores texts", "b"),
    ("which generates no text", "b"),
    ("which scores no texts", "c"),
    ("requests bring one image", "d"),
)
"""Words of a refusal, and the note that says them of the model; the first that are found hold."""

ASKED_FOR = {"exported without diagnostics": "g"}
"""Words of a refusal that the way a bundle was exported decides, not its family, and the note about that."""

OWN_DATA = {"begun.jsonl": "e", "captions.json": "f"}
"""Data that a command takes where it refuses the demo's, and the note that says why."""


class Reached(Exception):
    """The work begins: nothing was refused."""


@contextmanager
def no_work() -> Iterator[None]:
    """Whatever looks at pictures, times the machine or opens a port ends with Reached."""

    def reached(*_: Any, **__: Any) -> NoReturn:
        raise Reached

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "preprocess", reached)
        patch.setattr("catp.calibration.commands.bench.measure_rates", reached)
        patch.setattr("catp.runtime.server.serving.Serving.run", reached)
        yield


def said(app: typer.Typer, *arguments: str, pruning: Any = None) -> str | None:
    """A command's refusal; None where it sets to work, or is done.

    Args:
        pruning: as `as_if_pruned` takes it.
    """
    with no_work(), as_if_pruned(pruning) if pruning else nullcontext():
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    if isinstance(result.exception, Reached) or result.exit_code == 0:
        return None
    assert result.exit_code == 2 and result.stderr.startswith("error: "), (arguments, result.output, result.exception)
    return str(result.stderr).strip()


def cell(refusals: dict[str, str | None]) -> str:
    """The cell of one command, by what it was given beside the bundle: nothing, or data of its own."""
    for data, refusal in refusals.items():
        if refusal is None:
            return "yes" if data not in OWN_DATA else f"yes ({OWN_DATA[data]})"
    (refusal, *_) = filter(None, refusals.values())
    if asked := [note for words, note in ASKED_FOR.items() if words in refusal]:
        return f"yes ({asked[0]})"
    notes = [note for words, note in REASONS if words in refusal]
    assert notes, f"no note says this of the model: {refusal}"
    return f"no ({notes[0]})"


def write_data(folder: Path) -> None:
    """The files of OWN_DATA, about pictures of scenes."""
    captions, begun = [], []
    for number, example in enumerate(scenes.examples(40, seed=3)):
        example.image.save(folder / f"{number}.png")
        caption = f"a {example.scene.things[0].color} {example.scene.things[0].shape}"
        captions.append({"image": f"{number}.png", "caption": caption})
        begun.append({"image": f"{number}.png", "question": "a", "answers": [caption[2:]]})
    (folder / "captions.json").write_text(json.dumps(captions))
    (folder / "begun.jsonl").write_text("".join(json.dumps(line) + "\n" for line in begun))


def row_of(bundle: Path, pruning: Any, folder: Path) -> list[str]:
    """The cells of a family, in the order of COLUMNS.

    Args:
        pruning: an encoder's, as a manifest has it: `catp-calibrate schedule` is asked as if this bundle had it too.
        folder: where write_data has been.
    """
    manifest, name = open_bundle(bundle, verify=False).manifest, str(bundle)
    picture, out = str(folder / "0.png"), str(folder / "out")
    pair = [picture, str(folder / "1.png")] if manifest.model.language == "two-images" else [picture]
    shown = [part for each in pair for part in ("--image", each)]
    offered = CliRunner().invoke(export, ["--list-families"], env={"COLUMNS": "400"}).output
    assert manifest.model.family.split(",")[0] in offered, offered
    long = ("--max-length", "192", "--print-commands")  # the frames of a video, and a prompt
    asked = ["--samples", "16", "--questions", "4"]

    def either(app: typer.Typer, *arguments: str, own: tuple[str, ...] = (), pruned: Any = None) -> str:
        refusals = {"": said(app, *arguments, pruning=pruned)}
        for data in own:
            if all(refusals.values()):
                refusals[data] = said(app, *arguments, "--data", str(folder / data), pruning=pruned)
        return cell(refusals)

    against = ("schedule", name, "--against", name, "--flops", "0.85")
    found = {
        "export": "yes",
        "run": either(run, name, *shown[:2], "--prompt", "what is red?"),
        "match": either(match, name, *shown, "--text", "a red circle"),
        "serve": either(serve, name),
        "eval": either(evaluate, name, "--limit", "4", own=tuple(OWN_DATA)),
        "explain": either(explain, name, *shown[:2], "--prompt", "what is red?", "-o", f"{out}.png"),
        "ratio": either(calibrate, "ratio", name, "--limit", "8", own=("begun.jsonl",)),
        "schedule": either(calibrate, *against, own=("begun.jsonl",), pruned=pruning),
        "precision": either(
            calibrate, "precision", name, "--to", "int8", "--for", "cpu", "-o", out, *asked, own=tuple(OWN_DATA)
        ),
        "bench": either(bench, name, "--batch", "1"),
        "build": either(build, name, "--target", "tensorrt-rtx", "--compute-capability", "8.6", *long),
    }
    if found["explain"] == "yes":  # the bundle at hand has what all others need, too
        found["explain"] = f"yes ({ASKED_FOR['exported without diagnostics']})"
    return [found[column] for column in COLUMNS]


@contextmanager
def as_if_pruned(pruning: Any) -> Iterator[None]:
    """The first bundle that is loaded has that pruning in its manifest; the graphs stay what they are."""
    load, loaded = Pipeline.load, []

    def altered(path: Path, *arguments: Any, **options: Any) -> Pipeline:
        pipeline = load(path, *arguments, **options)
        if not loaded:
            manifest = pipeline.manifest.model_copy(update={"encoder_pruning": pruning})
            pipeline.bundle = dataclasses.replace(pipeline.bundle, manifest=manifest)
        loaded.append(path)
        return pipeline

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "load", altered)
        yield


def written_rows() -> dict[str, list[str]]:
    """By family, the cells of the page."""
    return {row: cells for row, *cells in table(PAGE, HEADING)}


def notes_of(rows: dict[str, list[str]]) -> list[str]:
    """The notes that a table's cells name, as the page has them."""
    named = {key for cells in rows.values() for each in cells for key in re.findall(r"\((\w)\)", each)}
    return [f"- ({key}) {text}" for key, text in NOTES.items() if key in named]


def write_row(family: str, cells: list[str]) -> None:
    """Put a family's cells into the page, and the notes that the table then names below it."""
    rows = {**written_rows(), family: cells}
    text = text_of(PAGE)
    start = text.index(f"\n| {HEADING}") + 1
    end = text.index("\n### ", start) if "\n### " in text[start:] else len(text)
    end = min(end, text.index("\n## ", start))
    head = text[start:].splitlines()[:2]
    lines = [f"| {row} | {' | '.join(rows[row])} |" for row in rows]
    (ROOT / PAGE).write_text("\n".join([text[:start] + "\n".join([*head, *lines]), "", *notes_of(rows), text[end:]]))


def check_row(family: str, cells: list[str]) -> None:
    if os.environ.get(WRITE):
        write_row(family, cells)
    assert written_rows()[family] == cells
