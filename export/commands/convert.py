"""catp-convert: checkpoints in formats of their own to Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from catp.runtime.commands.console import busy, console, make_group
from catp.runtime.errors import UsageError
from catp.runtime.system.optional_imports import reason_of

EXAMPLE_TOKENIZER = "Salesforce/blip-vqa-base"


def convert_madtp(
    file: Annotated[Path, typer.Argument(help="The .pth file that MADTP's official code saved: a BLIP.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the Hugging Face checkpoint.")],
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help=f"BERT's tokenizer, which is not in the file: a local folder or a Hub id ({EXAMPLE_TOKENIZER})."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier conversion.")] = False,
) -> None:
    """Convert a BLIP that was trained with MADTP: for question answering, captions, retrieval or NLVR2.

    Of BLIP's own files those for NLVR2 are taken too, which no Hub has in another form.

    The file is unpickled in a process of its own, and no code in it is run. Every weight is accounted for, or nothing
    is written. For example:

    catp-convert madtp checkpoint_02.pth --tokenizer Salesforce/blip-vqa-base -o blip-vqa-madtp
    """
    if tokenizer is None:
        raise UsageError(
            "--tokenizer is missing: BERT's vocabulary is not in a .pth file; give a folder or Hub id with "
            f"bert-base-uncased's tokenizer, such as {EXAMPLE_TOKENIZER}"
        )
    try:
        from catp.export.conversion import madtp
        from catp.export.conversion.listing import listed
    except ImportError as error:
        raise UsageError(
            f"catp-convert needs {error.name}, which {reason_of(error, error.name)}; pip install '.[export]'"
        ) from None
    found = madtp.convert_madtp(file, output, tokenizer, overwrite, busy)
    vision = found.config.vision_config
    pruning = (
        f"space_dict {' x '.join(map(str, found.guidance))}, temperature {found.temperature:g}"
        if found.guidance
        else "no space_dict, so it is a plain BLIP"
    )
    console.print(
        f"BLIP for {found.task.kind}: {found.names} of {found.names} weights, images of {vision.image_size} pixels in "
        f"patches of {vision.patch_size}; {pruning}",
        soft_wrap=True,
    )
    if found.left_out:
        console.print(escape(f"Left out, as only training reads it: {listed(found.left_out)}"), soft_wrap=True)
    console.print(f"Published {escape(str(output))}", soft_wrap=True)


app = make_group("Convert checkpoints of other projects to Hugging Face folders.", {"madtp": convert_madtp})
