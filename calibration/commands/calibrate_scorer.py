"""catp-calibrate scorer: which image tokens the Q-Former misses, taught from pictures without labels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.progress import Progress

from catp.calibration.commands.source import is_bundle
from catp.calibration.data import open_data
from catp.calibration.data.demo import DEMO_SEED
from catp.calibration.data.halves import half
from catp.runtime.commands.console import busy, console, print_json_line
from catp.runtime.errors import UsageError
from catp.runtime.files import is_dir

STATE = ".taught.npz"


def calibrate_scorer(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint: a local folder or a Hub id.")],
    data: Annotated[
        str, typer.Option(metavar="demo|easy-vqa|FOLDER|JSONL", help="Pictures, as for catp-eval; no answer is read.")
    ] = "demo",
    pictures: Annotated[int, typer.Option(min=10, help="Pictures that are looked at, at most.")] = 300,
    toggles: Annotated[int, typer.Option(min=1, help="Patches that are hidden in each.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of the pictures, and of what is hidden.")] = DEMO_SEED,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a Hub id.")] = None,
    adapter: Annotated[
        str | None, typer.Option(help="A LoRA adapter, a local folder or a Hub id, merged into the checkpoint.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="An existing folder for it. Default: the checkpoint's own.")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="The record as one line on standard output.")] = False,
) -> None:
    """Teach a scorer of image tokens, which catp-export --encoder-pruning taught then prunes by.

    Patches are hidden from the Q-Former, and a linear map for each layer of the vision encoder learns to tell how far
    that moves its query embeddings. An interrupted run goes on where it was.

    catp-calibrate scorer blip2-folder --data vqav2 && catp-export --model blip2-folder --encoder-pruning taught ...
    """
    if is_bundle(model):
        raise UsageError(f"{model}: a bundle; give the checkpoint that it was exported from")
    if output is None and not is_dir(Path(model)):
        raise UsageError(f"model {model}: no local folder; say with --output where the scorer is to be written")
    folder = output or Path(model)
    if not is_dir(folder):
        raise UsageError(f"--output {folder}: no such folder; make it, or give another one")
    try:  # before minutes of work
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"--output {folder}: nothing can be written there ({error.strerror}); give another folder"
        ) from None
    try:
        from catp.calibration.encoder.teaching import teach
        from catp.export.checkpoints.loading import load_checkpoint
        from catp.export.checkpoints.taught import write_taught
    except ImportError as error:
        raise UsageError(f"catp-calibrate scorer needs {error.name}; pip install '.[export,cpu]'") from None
    asked = open_data(data)
    with busy(f"load {model}"):
        checkpoint = load_checkpoint(model, revision, None, adapter)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("pictures", total=pictures)
        # The half that other commands search on: none that confirms has been seen.
        found = teach(
            checkpoint,
            half(asked, seed, "search"),
            asked.name,
            pictures,
            toggles,
            seed,
            folder / STATE,
            lambda done: progress.advance(task, done),
        )
    write_taught(found, folder)
    if json_output:
        print_json_line(found.record.model_dump_json())
    shares = ", ".join(f"{100 * share:.0f}" for share in found.record.explained)
    console.print(
        f"Taught by {found.record.pictures:,} pictures of {escape(asked.name)}; of how far queries move, held-back "
        f"pictures' tokens explain, layer by layer, {shares} %. Next: catp-export --encoder-pruning taught",
        soft_wrap=True,
    )
